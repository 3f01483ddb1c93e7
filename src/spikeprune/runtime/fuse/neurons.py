"""Which neurons and normalisations the fused kernel can stand in for, and their numbers."""

from typing import Any

import torch
from torch import Tensor, nn

from spikeprune.core.errors import InvalidValue
from spikeprune.model.adapter import Adapter, NeuronParams
from spikeprune.runtime.fuse.kernel import Neuron, slope

_PROBES = torch.tensor([-2.0, -0.75, -0.375, -0.1, 0.0, 0.1, 0.375, 0.75, 2.0], dtype=torch.float64)
# Class names of SpikingJelly's and PyTorch's layers that do nothing but BatchNorm over [T * N, C, *space].
_MERGED = {f"{name}{d}d" for name in ("BatchNorm", "ThresholdDependentBatchNorm") for d in (1, 2, 3)}
_PER_STEP = {"BatchNorm2dPerStep"}
_HOMES = ("torch.nn.modules.batchnorm", "spikingjelly.activation_based.layer", "spikeprune.zoo")


def surrogate_of(adapter: Adapter, neuron: nn.Module) -> tuple[str, float, bool] | str:
    """(name, steepness, strict) of the neuron's surrogate, or why it cannot be told.

    A surrogate is known by what it computes, not by its class: its derivative must agree with one of ours.
    """
    function = adapter.surrogate(neuron)
    steepness = getattr(function, "alpha", getattr(function, "k", None))
    called = f"surrogate {type(function).__name__}"
    if isinstance(steepness, bool) or not isinstance(steepness, (int, float)):
        return f"{called} has no plain number as its steepness"
    try:
        derivative = adapter.derivative(neuron, _PROBES)
        with torch.no_grad():
            strict = not bool(function(_PROBES.new_zeros(1)).item() >= 1.0)
    except InvalidValue as error:
        return str(error)
    for name in ("atan", "sigmoid", "clamped-tanh"):
        ours = Neuron(1, 1, 0, 0, 0, 0, surrogate=name, alpha=float(steepness))
        if torch.allclose(derivative, slope(ours, _PROBES), rtol=1e-6, atol=1e-9):
            return name, float(steepness), strict
    return f"{called} is none of ATan, Sigmoid, Dspike"


class Reader:
    """Reads one neuron's numbers at every call; its surrogate is only looked into when it has changed."""

    def __init__(self) -> None:
        self.key: Any = None
        self.surrogate: tuple[str, float, bool] | str = ""

    def __call__(self, adapter: Adapter, neuron: nn.Module) -> Neuron | str:
        """The numbers, or why the kernel cannot stand in for the neuron."""
        function = adapter.surrogate(neuron)
        key = (type(function), *(getattr(function, name, None) for name in ("alpha", "k", "spiking")))
        if key != self.key:
            self.key, self.surrogate = key, surrogate_of(adapter, neuron)
        return _read(adapter, neuron, self.surrogate)


def _read(adapter: Adapter, neuron: nn.Module, surrogate: "tuple[str, float, bool] | str") -> "Neuron | str":
    params = adapter.describe(neuron)
    if params is None:
        return f"{type(neuron).__name__} is not a plain IF, LIF or PLIF neuron"
    numbers = _numbers(params)
    if numbers is None:
        return f"{type(neuron).__name__} has parameters per channel"
    decay, gain, v_threshold, v_reset, v_rest = numbers
    if decay is None or gain is None or v_threshold is None or v_rest is None:
        return f"{type(neuron).__name__} has no plain numbers as parameters"
    if isinstance(surrogate, str):
        return surrogate
    name, alpha, strict = surrogate
    slopes = (0.0, 0.0, 0.0)
    if leak_of(neuron) is not None:  # decay = 1 - q, offset = v_rest * q, gain = q or 1
        slopes = (-1.0, 1.0 if getattr(neuron, "decay_input", True) else 0.0, v_rest)
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
        smooth=not getattr(adapter.surrogate(neuron), "spiking", True),
        detach_reset=params.detach_reset,
        slopes=slopes,
    )


def _numbers(params: NeuronParams) -> list[float | None] | None:
    numbers: list[float | None] = []
    for value in (params.decay, params.gain, params.v_threshold, params.v_reset, params.v_rest):
        if isinstance(value, Tensor):
            if value.numel() != 1 or value.requires_grad:
                return None
            value = float(value)
        numbers.append(value)
    return numbers


def leak_of(neuron: nn.Module) -> Tensor | None:
    """The leak q = sigmoid(w) of a neuron that learns it, in the graph; None for all others."""
    w = getattr(neuron, "w", None)
    if type(neuron).__name__ == "ParametricLIFNode" and isinstance(w, Tensor):
        return w.sigmoid()
    return None


def normalisation(module: nn.Module) -> tuple[bool, str]:
    """(whether each time step has statistics of its own, why the kernel cannot stand in for it or "")."""
    kind = type(module)
    known = kind.__module__.startswith(_HOMES)
    if known and kind.__name__ in _PER_STEP:
        return True, ""
    if known and kind.__name__ in _MERGED:
        return False, ""
    return False, f"{kind.__name__} is not a BatchNorm known here"


def pooling(module: Any) -> str:
    """ "max" or "avg" for a multi-step layer that pools 2x2 positions without overlap or border, else ""."""
    kind = type(module)
    if not kind.__module__.startswith(_HOMES) or not hasattr(module, "step_mode"):
        return ""
    if kind.__name__ not in ("MaxPool2d", "AvgPool2d"):
        return ""
    if any(value not in (2, (2, 2)) for value in (module.kernel_size, module.stride)):
        return ""
    if module.padding not in (0, (0, 0)) or module.ceil_mode:
        return ""
    if kind.__name__ == "MaxPool2d":
        return "max" if module.dilation in (1, (1, 1)) and not module.return_indices else ""
    return "avg" if module.divisor_override is None else ""


def carried(neuron: Any, N: int, shape: torch.Size) -> tuple[Tensor | None, float]:
    """The membrane potential that the call starts from: a tensor [N, C, *space] from an earlier call, or a number."""
    v = neuron.v
    if not isinstance(v, Tensor):
        return None, float(v)
    if v.shape == (N, *shape):
        return v, 0.0
    # SpikingJelly starts afresh when the batch has another shape.
    return None, 0.0 if neuron.v_reset is None else float(neuron.v_reset)
