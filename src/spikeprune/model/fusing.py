"""The questions of `sp.fuse` to an adapter, so that neurons and layers of any framework can run in its kernel."""

import abc
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn


@dataclass(frozen=True)
class LearnedLeak:
    """The leak q that a neuron learns, a scalar in the graph, and how the neuron's numbers move with it.

    slopes: derivatives of decay, gain and offset (= (1 - decay) * v_rest) by q. All three are linear in q.
    """

    value: Tensor
    slopes: tuple[float, float, float]


class Fusing(abc.ABC):
    """How the fused kernel stands in for neurons that `Adapter.describe` describes; `Adapter.fusing` returns one.

    Neurons are multi-step: they take [T, N, C, *space]. The layers between them are torch's own, or those that the
    last four methods tell.
    """

    @abc.abstractmethod
    def carried(self, neuron: nn.Module, N: int, shape: tuple[int, ...]) -> Tensor | float:
        """The membrane potential that a call on N samples starts from: [N, *shape], or one number for all.

        A number that is not the resting potential is kept too; a tensor of another shape must not be returned.
        """

    @abc.abstractmethod
    def carry(self, neuron: nn.Module, v: Tensor) -> None:
        """Keeps the membrane potential [N, *shape] after the last step, as the neuron's own forward would."""

    def usual(self, neuron: nn.Module) -> bool:
        """Whether a call now gives spikes and a last potential alone; False runs the neuron's own forward."""
        return True

    def steepness(self, neuron: nn.Module) -> float | None:
        """The parameter of the neuron's surrogate; None lets the kernel find it from the derivative at 0."""
        return None

    def smooth(self, neuron: nn.Module) -> bool:
        """Whether the neuron fires its surrogate's curve instead of spikes, for checks of gradients."""
        return False

    def leak(self, neuron: nn.Module) -> LearnedLeak | None:
        """The leak if the neuron learns it, None if its numbers are fixed."""
        return None

    def sequence(self, module: nn.Module) -> bool:
        """Whether a layer sees [T, N, ...] now; torch's own layers see [T * N, ...]."""
        return False

    def batch_norm(self, module: nn.Module) -> Literal["", "merged", "per step"]:
        """Whether a layer is BatchNorm over all steps or for each of them, "" if it is something else."""
        return ""

    def pooling(self, module: nn.Module) -> Literal["", "max", "avg"]:
        """Which 2x2 pooling without overlap or border of [T, N, C, H, W] a layer is, "" if it is something else."""
        return ""

    def convolution(self, module: nn.Module) -> bool:
        """Whether a layer is torch's plain convolution in the framework's clothes, and nothing more."""
        return False
