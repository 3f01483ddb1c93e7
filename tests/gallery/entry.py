"""A place in the gallery: a small architecture in an idiom of public code, and the input that it takes."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Entry:
    """One architecture.

    Attributes:
        idiom: what it shows, as it stands in docs/supported.md.
        make: the network, the same one at each call.
        shape: of the input; `time` says where T is, as for `sp.count`.
    """

    name: str
    idiom: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    time: str = "first"

    def network(self) -> nn.Module:
        """The network with weights that let every layer fire."""
        torch.manual_seed(0)
        net = self.make()
        with torch.no_grad():
            for parameter in net.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(2.5)
            for module in net.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.bias.fill_(0.5)
        return net

    def example(self) -> Tensor:
        """A batch; some values are 0, so that counts differ from sizes."""
        x = torch.rand(self.shape, generator=torch.Generator().manual_seed(7)) * 2.5
        return x * (x > 0.5)


ENTRIES: dict[str, Entry] = {}


def entry(name: str, idiom: str, *shape: int, time: str = "first") -> Callable[[Callable[[], nn.Module]], object]:
    """Registers a network class or function under a name."""

    def register(make: Callable[[], nn.Module]) -> object:
        ENTRIES[name] = Entry(name, idiom, make, shape, time)
        return make

    return register
