"""Which neurons and normalisations the fused kernel can stand in for, and their numbers."""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from spikeprune.core.errors import InvalidValue
from spikeprune.core.surrogate import Curve
from spikeprune.model.adapter import Adapter, NeuronParams
from spikeprune.model.fusing import Fusing
from spikeprune.runtime.fuse.call import Neuron, curve_of
from spikeprune.runtime.structs import SURROGATES

_PROBES = torch.tensor([-2.0, -0.75, -0.375, -0.1, 0.0, 0.1, 0.375, 0.75, 2.0], dtype=torch.float64)
OWN = "own"  # stands for a surrogate that the kernel does not know
_TORCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def surrogate_of(
    adapter: Adapter, neuron: nn.Module, steepness: float | None, smooth: bool = False
) -> tuple[str, float, bool] | str:
    """(name, steepness, strict) of the neuron's surrogate, or the reason why it cannot be fused.

    A surrogate is recognised by its values, not by its class. If its derivative equals that of a curve in `SURROGATES`,
    it gets that name; otherwise its name is "own", and the function itself is asked for its derivative.

    Args:
        steepness: of the surrogate, if the framework tells it; None finds it from the derivative at 0.
        smooth: whether the neuron returns the surrogate's value instead of spikes.
    Returns: strict: whether the neuron fires only above its threshold, and not at it.
    """
    function = adapter.surrogate(neuron)
    called = f"surrogate {type(function).__name__}"
    try:
        derivative = adapter.derivative(neuron, _PROBES)
        with torch.no_grad():
            fired = function(_PROBES)
    except InvalidValue as error:
        return str(error)
    strict = not bool(fired[_PROBES == 0].item() >= 1.0)
    if not smooth and not torch.equal(fired, (_PROBES > 0 if strict else _PROBES >= 0).to(fired.dtype)):
        return f"{called} gives other values than 0 below the threshold and 1 above it"
    top = float(derivative[_PROBES == 0])
    for name in SURROGATES:
        alpha = _steepness(name, top) if steepness is None else float(steepness)
        if alpha and torch.allclose(derivative, curve_of(name, alpha).derivative(_PROBES), rtol=1e-6, atol=1e-9):
            return name, alpha, strict
    if smooth:
        return f"{called} is none of ATan, Sigmoid, Dspike, and the neuron fires its curve"
    if isinstance(function, nn.Module) and any(p.requires_grad for p in function.parameters()):
        return f"{called} has parameters that are learned"
    return OWN, 0.0, strict


def _steepness(name: str, top: float) -> float:
    """The parameter of a surrogate with this derivative at 0; 0 if it has none."""
    if not 0 < top < 1e6:
        return 0.0
    if name == "atan":
        return 2 * top
    if name == "sigmoid":
        return 4 * top
    low, high = 1e-9, 4 * top + 2  # k / (2 tanh(k / 2)) rises with k, from 1
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if middle / (2 * math.tanh(middle / 2)) < top else (low, middle)
    return round(high, 12)


class Reader:
    """Reads one neuron's numbers at every call; its surrogate is only looked into when it has changed."""

    def __init__(self, adapter: Adapter, fusing: Fusing) -> None:
        self.adapter = adapter
        self.fusing = fusing
        self.key: tuple[Any, ...] = ()
        self.surrogate: tuple[str, float, bool] | str = ""

    def __call__(self, neuron: nn.Module) -> Neuron | str:
        """The numbers, or why the kernel cannot stand in for the neuron."""
        function, steepness = self.adapter.surrogate(neuron), self.fusing.steepness(neuron)
        key = (type(function) if steepness is not None else function, steepness, self.fusing.smooth(neuron))
        if key != self.key:
            self.key, self.surrogate = key, surrogate_of(self.adapter, neuron, steepness, self.fusing.smooth(neuron))
        return self._read(neuron)

    def _read(self, neuron: nn.Module) -> Neuron | str:
        params = self.adapter.describe(neuron)
        kind = type(neuron).__name__
        if params is None:
            return f"{kind} is not a plain IF, LIF or PLIF neuron"
        numbers = _numbers(params)
        if numbers is None:
            return f"{kind} has parameters per channel"
        decay, gain, v_threshold, v_reset, v_rest = numbers
        if decay is None or gain is None or v_threshold is None or v_rest is None:
            return f"{kind} has no plain numbers as parameters"
        if isinstance(self.surrogate, str):
            return self.surrogate
        name, alpha, strict = self.surrogate
        leak = self.fusing.leak(neuron)
        return Neuron(
            decay=decay,
            gain=gain,
            offset=v_rest * (1 - decay),
            v_threshold=v_threshold,
            # A hard reset puts v_reset, a soft one takes v_threshold away.
            reset_scale=1.0 if v_reset is None else 0.0,
            reset_shift=-v_threshold if v_reset is None else v_reset,
            surrogate=name,
            alpha=alpha,
            strict=strict or params.strict,
            smooth=self.fusing.smooth(neuron),
            detach_reset=params.detach_reset,
            slopes=(0.0, 0.0, 0.0) if leak is None else leak.slopes,
            own=self._own(neuron) if name == OWN else None,
        )

    def _own(self, neuron: nn.Module) -> Curve:
        """The neuron's own surrogate as it is at the moment of each call."""
        return Curve(partial(self.adapter.smooth, neuron), partial(self.adapter.derivative, neuron))


def _numbers(params: NeuronParams) -> list[float | None] | None:
    numbers: list[float | None] = []
    for value in (params.decay, params.gain, params.v_threshold, params.v_reset, params.v_rest):
        if isinstance(value, Tensor):
            if value.numel() != 1 or value.requires_grad:
                return None
            value = float(value)
        numbers.append(value)
    return numbers


def normalisation(module: nn.Module, fusing: Fusing) -> tuple[bool, str]:
    """(whether each time step has statistics of its own, why the kernel cannot stand in for it or "")."""
    kind = "merged" if type(module) in _TORCH_NORMS else fusing.batch_norm(module)
    if not kind:
        return False, f"{type(module).__name__} is not a BatchNorm known here"
    return kind == "per step", ""


def is_plain_convolution(module: nn.Module, fusing: Fusing) -> bool:
    """Whether the layer computes torch's convolution of its parameters: a subclass may do anything else."""
    return (type(module) is nn.Conv2d or fusing.convolution(module)) and "_conv_forward" not in vars(module)
