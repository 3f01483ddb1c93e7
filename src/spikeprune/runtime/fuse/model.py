"""`fuse` and `unfuse`: the fused kernel inside a user's model, which keeps its modules, names, keys and hooks."""

import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor, nn

from spikeprune.core.errors import InvalidValue
from spikeprune.model.adapter import adapter_for
from spikeprune.model.discover import Discovered, spiking_adapter
from spikeprune.model.fusing import Fusing
from spikeprune.runtime.fuse.forwards import (
    Fusion,
    NeuronState,
    PoolState,
    conv_forward,
    model_forward,
    neuron_forward,
    norm_forward,
    pool_forward,
)
from spikeprune.runtime.fuse.neurons import Reader, is_plain_convolution, normalisation
from spikeprune.runtime.fuse.norm import NormState

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Fused:
    """The report of `fuse` on one neuron, BatchNorm or pooling layer.

    fused: whether the kernel stands in for it. norm: for a neuron, the BatchNorm computed with it ("" if none, None
    until the first forward has shown it); None for everything else. reason: why it is not fused, or what keeps a
    BatchNorm from being skipped.
    """

    name: str
    fused: bool
    norm: str | None = None
    reason: str = ""


def fuse(model: M) -> M:
    """Trains a SpikingJelly model with BatchNorm and neuron in one kernel: less memory, less time, same gradients.

    In place, before or after `Pruner.attach`. Modules, their names, parameters, buffers and hooks stay; only what
    happens inside a forward of `model` changes. Between forward and backward a pair keeps the convolution's output
    and nothing else, and spikes are kept as bits. A neuron without a BatchNorm before it is fused alone; a
    convolution whose input is one image expanded over T runs once. A stride-1 Conv2d that reads spikes adds up only
    those that fire. 2x2 pooling of channels-last spikes that nothing else reads runs inside the neuron's kernel.

    Which BatchNorm belongs to which neuron is seen in the running model, so blocks of any shape will do: a neuron
    fed with exactly what a BatchNorm returned goes back to the BatchNorm's input, and whoever else reads that result
    still gets it. Modules that cannot be fused run as before, and `fuse_report` names them. Neurons of snnTorch, of
    Norse and those that are found by their spike functions run as before too.

    On the CPU float32, bfloat16 and float64 run in C++ (in PyTorch without a compiler); other devices and types, and
    surrogates other than ATan, Sigmoid and Dspike, take the PyTorch way, which saves memory but no time. Under
    `torch.compile` the model runs unfused and is left to the compiler. Spikes are those of the unfused model up to
    ties, gradients equal up to rounding. There is no second derivative.

    Returns: `model` itself.
    Raises: InvalidValue if the model has no spiking neuron, if a part of it is fused already, or if another tool has
        replaced the model's forward; nothing is changed then.

    Examples:
        >>> sp.fuse(model) is model  # in place
        True
        >>> model(data[0][0]).shape
        torch.Size([3, 4, 5])
    """
    if _fusion(model) is not None:
        return model
    adapter = spiking_adapter(model)
    if "forward" in vars(model):
        raise InvalidValue("the model's forward was replaced by another tool; call sp.fuse before it does that")
    for name, module in model.named_modules():
        if _fusion(module) is not None:
            raise InvalidValue(
                f"{name!r} inside the model is fused already; call sp.unfuse on it first, then fuse the whole"
            )
    fusion = Fusion()
    if isinstance(adapter, Discovered):
        fusion.refused[""] = "its neurons are found by their spike functions and run the model's own forward"
        _replace(fusion, "", model, model_forward, fusion)
        return model
    layers = _layers(model)
    for name, module in model.named_modules():
        if adapter.is_neuron(module):
            own = adapter_for(module)
            fusing = own.fusing()
            if fusing is None:
                fusion.refused[name] = f"the adapter for {own.name} does not tell how to fuse its neurons"
                continue
            reader = Reader(own, fusing)
            numbers = reader(module)
            if isinstance(numbers, str):
                fusion.refused[name] = numbers
            else:
                _replace(fusion, name, module, neuron_forward, NeuronState(name, reader, fusing))
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            per_step, reason = normalisation(module, layers)
            if reason:
                fusion.refused[name] = reason
            else:
                _replace(fusion, name, module, norm_forward, NormState(name, per_step, layers))
        elif kind := layers.pooling(module):
            _replace(fusion, name, module, pool_forward, PoolState(name, layers, kind))
        elif is_plain_convolution(module, layers):
            _replace(fusion, name, module, conv_forward, layers)
    _replace(fusion, "", model, model_forward, fusion)
    return model


def _layers(model: nn.Module) -> Fusing:
    """The `Fusing` that knows the layers between the neurons: that of the first neuron whose adapter can fuse."""
    adapter = adapter_for(model)
    found = (adapter_for(module).fusing() for module in model.modules() if adapter.is_neuron(module))
    return next((fusing for fusing in found if fusing is not None), _Plain())


class _Plain(Fusing):
    """Layers of torch alone; there is no neuron to ask about."""

    def carried(self, neuron: nn.Module, N: int, shape: tuple[int, ...]) -> float:
        return 0.0

    def carry(self, neuron: nn.Module, v: Tensor) -> None:
        pass


def unfuse(model: M) -> M:
    """Undoes `fuse`, in place.

    Returns: `model` itself; it stays as it is if it was not fused.

    Examples:
        >>> sp.unfuse(sp.fuse(model)) is model
        True
    """
    fusion = _fusion(model)
    if fusion is not None:
        for module in fusion.modules.values():
            vars(module).pop("forward", None)
            vars(module).pop("_fuse_state", None)
    return model


def fuse_report(model: nn.Module) -> list[Fused]:
    """A report by name of the modules that are fused and of those that are not.

    It is complete after one training forward.

    Raises: InvalidValue if the model is not fused.
    """
    fusion = _fusion(model)
    if fusion is None:
        raise InvalidValue("the model is not fused; call sp.fuse(model) first, then run it once")
    rows = [Fused(name, False, reason=reason) for name, reason in fusion.refused.items()]
    norms: dict[str, str] = {}
    for name, module in fusion.modules.items():
        state = vars(module).get("_fuse_state")
        if isinstance(state, NeuronState):
            rows.append(Fused(name, True, state.norm))
            norms[state.norm or ""] = name
            if state.pool and not state.shared:
                rows.append(Fused(state.pool_name, True))
    for name, module in fusion.modules.items():
        state = vars(module).get("_fuse_state")
        if isinstance(state, NormState):
            reason = "its result is also read by something else" if state.shared else ""
            if name not in norms:
                reason = "no forward yet, or no fused neuron reads its result"
            rows.append(Fused(name, name in norms, reason=reason))
    return rows


@contextmanager
def recording_criticality(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Collects criticality inside the fused kernel while the model runs: next to no time, no potential is stored.

    Mean over T of the neuron's own surrogate derivative at v_pre - v_threshold, max over space, mean over samples.

    Yields: a dict that holds neuron name -> [C] once the block is left.
    Raises: InvalidValue if the model is not fused.
    Source: Chen et al. 2023, arXiv:2311.16141.
    """
    fusion = _fusion(model)
    if fusion is None:
        raise InvalidValue("criticality is recorded by fused neurons; call sp.fuse(model) first")
    found: dict[str, Tensor] = {}
    fusion.criticality = {}
    try:
        yield found
    finally:
        found.update({name: total / count for name, (total, count) in fusion.criticality.items()})
        fusion.criticality = None


def _fusion(module: nn.Module) -> Fusion | None:
    state = vars(module).get("_fuse_state")
    return state if isinstance(state, Fusion) else None


def _replace(fusion: Fusion, name: str, module: nn.Module, function: Any, state: Any) -> None:
    if "forward" in vars(module):
        fusion.refused[name] = "its forward was replaced by somebody else"
        return
    # A bound method on the instance: the class stays what it is, and copy.deepcopy binds it to the copy.
    module.forward = types.MethodType(function, module)
    module._fuse_state = state  # pyright: ignore[reportArgumentType]
    fusion.modules[name] = module
