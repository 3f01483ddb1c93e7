"""The arguments of a call of a module or a function, and hooks that see them."""

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from spikeprune.model.hooks import OwnHook


class Arguments(NamedTuple):
    """The arguments of a call, by position and by name."""

    positional: tuple[Any, ...] = ()
    named: Mapping[str, Any] = MappingProxyType({})

    @property
    def values(self) -> tuple[Any, ...]:
        """All of them; a state may be passed by name, as in `lif(x, mem=mem)`."""
        return (*self.positional, *self.named.values())

    @property
    def first(self) -> Tensor:
        """The first one, which is a layer's input. It is detached."""
        return self.values[0].detach()


NONE = Arguments()


def on_call(module: nn.Module, see: Callable[[nn.Module, Arguments], None]) -> RemovableHandle:
    """Calls `see` before each forward of a module."""

    def hook(called: nn.Module, positional: Any, named: Any) -> None:
        see(called, Arguments(positional, named))

    return module.register_forward_pre_hook(OwnHook(hook), with_kwargs=True)


def on_result(module: nn.Module, see: Callable[[nn.Module, Arguments, Any], None]) -> RemovableHandle:
    """Calls `see` after each forward of a module, with what it returned."""

    def hook(called: nn.Module, positional: Any, named: Any, result: Any) -> None:
        see(called, Arguments(positional, named), result)

    return module.register_forward_hook(OwnHook(hook), with_kwargs=True)


def tensors(values: Any) -> Iterator[Tensor]:
    """All tensors in nested tuples, lists and mappings."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (tuple, list)):
        for value in values:  # pyright: ignore[reportUnknownVariableType]
            yield from tensors(value)
    elif isinstance(values, Mapping):
        for value in values.values():  # pyright: ignore[reportUnknownVariableType]
            yield from tensors(value)
