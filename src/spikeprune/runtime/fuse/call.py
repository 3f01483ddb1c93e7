"""The arguments of the fused function beside its tensors."""

from dataclasses import dataclass, replace
from functools import cache, partial

from torch import Tensor

from spikeprune.core.surrogate import Curve, atan, dspike, sigmoid
from spikeprune.runtime.structs import SURROGATES

_CURVES = {"atan": atan, "sigmoid": sigmoid, "clamped-tanh": partial(dspike, clamped=True)}
assert tuple(_CURVES) == SURROGATES


@cache
def curve_of(surrogate: str, alpha: float) -> Curve:
    """The surrogate that the kernel knows by this name."""
    return _CURVES[surrogate](alpha)


@dataclass(frozen=True)
class Neuron:
    """The neuron's numbers; v_start is its potential before the first step, unless a tensor is carried over."""

    decay: float
    gain: float
    offset: float
    v_threshold: float
    reset_scale: float
    reset_shift: float
    surrogate: str
    alpha: float
    v_start: float = 0.0
    strict: bool = False
    smooth: bool = False
    detach_reset: bool = False
    # How decay, gain and offset move with the leak q of a neuron that learns it.
    slopes: tuple[float, float, float] = (0.0, 0.0, 0.0)
    # A surrogate that the kernel does not know: the neuron's own function. It runs in PyTorch.
    own: Curve | None = None

    @property
    def curve(self) -> Curve:
        """The surrogate's curve and derivative."""
        return self.own or curve_of(self.surrogate, self.alpha)

    @property
    def v_reset(self) -> float | None:
        """The potential after a hard reset, None for a soft reset."""
        return None if self.reset_scale else self.reset_shift

    def starting_at(self, v: float) -> "Neuron":
        """A copy of the neuron with another potential before the first step."""
        return self if v == self.v_start else replace(self, v_start=v)


@dataclass(frozen=True)
class Norm:
    """The statistics that BatchNorm uses: mean and biased var, float64, [C], or [T, C] if each step has its own.

    `batch` says that they are those of y itself, so that the gradient also runs through them.
    """

    mean: Tensor
    var: Tensor
    eps: float
    batch: bool

    @property
    def per_step(self) -> bool:
        return self.mean.dim() == 2


@dataclass
class Call:
    """The arguments of one call of `fire` that are not differentiated.

    Args:
        is_static: the input is the same at all T steps, so `y` holds it once.
        criticality: zeros [N, C] in float32; the call fills it with the maximum over space of the mean over T of the
            surrogate's derivative at h - v_threshold.
        pool: "max" or "avg" pools the spikes over 2x2 positions; only where `can_pool` allows it.
    """

    T: int
    neuron: Neuron
    norm: Norm | None = None
    is_static: bool = False
    criticality: Tensor | None = None
    pool: str = ""
