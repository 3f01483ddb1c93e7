"""`fuse` and `unfuse`: the fused kernel inside a user's model, which keeps its modules, names, keys and hooks."""

import threading
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_leaves

from spikeprune.core.errors import InvalidValue
from spikeprune.model.adapter import Adapter, adapter_for
from spikeprune.runtime.fuse.bits import SpikeStore
from spikeprune.runtime.fuse.events import convolution
from spikeprune.runtime.fuse.kernel import Call, can_pool, fire
from spikeprune.runtime.fuse.neurons import Reader, carried, leak_of, normalisation, pooling
from spikeprune.runtime.fuse.norm import Bridge, NormState, Pending, PendingSpikes, Pooled, Results, bridge, track

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Fused:
    """What became of one neuron, BatchNorm or pooling layer (those that run inside a neuron's kernel are listed).

    fused: whether the kernel stands in for it. norm: for a neuron, the BatchNorm computed with it ("" if none, None
    until the first forward has shown it); None for everything else. reason: why it is not fused, or what keeps a
    BatchNorm from being skipped.
    """

    name: str
    fused: bool
    norm: str | None = None
    reason: str = ""


@dataclass
class _NeuronState:
    name: str
    reader: Reader
    norm: str | None = None
    # The pooling behind it, once a forward with gradient has shown that it alone reads the spikes, and its name.
    pool: str = ""
    pool_name: str = ""
    shared: bool = False  # something besides the pooling reads the spikes


@dataclass
class _PoolState:
    name: str
    kind: str  # "max" or "avg"


@dataclass
class _Fusion:
    """What the fused model itself carries. `modules` are those whose forward was replaced."""

    adapter: Adapter
    modules: dict[str, nn.Module] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    # Sum over samples of the criticality [C], and their number, per neuron; None when nobody asked.
    criticality: dict[str, tuple[Tensor, int]] | None = None


@dataclass
class _Fired:
    """A neuron's spikes [T, N, C, *space], and how to compute them once more pooled."""

    state: _NeuronState
    storage: StorageWeakRef
    version: int
    form: tuple[Any, ...]  # shape and stride
    pooled: Callable[[str], Tensor]


class _Forward:
    """One forward of the fused model."""

    def __init__(self, fusion: _Fusion) -> None:
        self.fusion = fusion
        self.spikes = SpikeStore()
        self.results = Results()
        self.crossed: dict[int, tuple[NormState, Any]] = {}  # results that a neuron went back over, with their node
        self.fired: dict[int, _Fired] = {}  # by the spikes' memory
        self.pooled: list[tuple[_NeuronState, _PoolState, Any]] = []  # likewise: spikes that a pooling went back over
        # Hooks are shown true tensors, at the price of computing them.
        hooks = nn.modules.module
        self.watched = bool(
            hooks._global_forward_hooks
            or hooks._global_forward_pre_hooks
            or any(m._forward_hooks or m._forward_pre_hooks for m in fusion.modules.values())
        )


_running = threading.local()


def _current() -> _Forward | None:
    return None if torch.compiler.is_compiling() else getattr(_running, "forward", None)


def fuse(model: M) -> M:
    """Trains a SpikingJelly model with BatchNorm and neuron in one kernel: less memory, less time, same gradients.

    In place, before or after `Pruner.attach`. Modules, their names, parameters, buffers and hooks stay; only what
    happens inside a forward of `model` changes. Between forward and backward a pair keeps the convolution's output
    and nothing else, and spikes are kept as bits. A neuron without a BatchNorm before it is fused alone; a
    convolution whose input is one image expanded over T runs once. A stride-1 Conv2d that reads spikes adds up only
    those that fire. 2x2 pooling of channels-last spikes that nothing else reads runs inside the neuron's kernel.

    Which BatchNorm belongs to which neuron is seen in the running model, so blocks of any shape will do: a neuron
    fed with exactly what a BatchNorm returned goes back to the BatchNorm's input, and whoever else reads that result
    still gets it. What cannot be fused runs as before; `fuse_report` names it.

    On the CPU float32, bfloat16 and float64 run in C++ (in PyTorch without a compiler); other devices and types take
    the PyTorch way. Under `torch.compile` the model runs unfused and is left to the compiler. Spikes are those of the
    unfused model up to ties, gradients equal up to rounding. There is no second derivative.

    Returns: `model` itself.
    Raises: InvalidValue if the model has no spiking neuron, or if a part of it is fused already.
    """
    if _fusion(model) is not None:
        return model
    adapter = adapter_for(model)
    fusion = _Fusion(adapter)
    for name, module in model.named_modules():
        if _fusion(module) is not None:
            raise InvalidValue(
                f"{name!r} inside the model is fused already; call sp.unfuse on it first, then fuse the whole"
            )
        if adapter.is_neuron(module):
            reader = Reader()
            numbers = reader(adapter, module)
            if isinstance(numbers, str):
                fusion.refused[name] = numbers
            else:
                _replace(fusion, name, module, _neuron_forward, _NeuronState(name, reader))
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            per_step, reason = normalisation(module)
            if reason:
                fusion.refused[name] = reason
            else:
                _replace(fusion, name, module, _norm_forward, NormState(name, per_step))
        elif kind := pooling(module):
            _replace(fusion, name, module, _pool_forward, _PoolState(name, kind))
        elif isinstance(module, nn.Conv2d) or (
            isinstance(module, nn.modules.conv._ConvNd) and hasattr(module, "step_mode")
        ):
            _replace(fusion, name, module, _conv_forward, None)
    _replace(fusion, "", model, _model_forward, fusion)
    return model


def unfuse(model: M) -> M:
    """Undoes `fuse`, in place.

    Returns: `model` itself; it stays as it is if it was not fused.
    """
    fusion = _fusion(model)
    if fusion is not None:
        for module in fusion.modules.values():
            vars(module).pop("forward", None)
            vars(module).pop("_fuse_state", None)
    return model


def fuse_report(model: nn.Module) -> list[Fused]:
    """What is fused with what and what is not, by name; complete once the model has run forward and backward graph.

    Raises: InvalidValue if the model is not fused.
    """
    fusion = _fusion(model)
    if fusion is None:
        raise InvalidValue("the model is not fused; call sp.fuse(model) first, then run it once")
    rows = [Fused(name, False, reason=reason) for name, reason in fusion.refused.items()]
    norms: dict[str, str] = {}
    for name, module in fusion.modules.items():
        state = vars(module).get("_fuse_state")
        if isinstance(state, _NeuronState):
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


def _fusion(module: nn.Module) -> _Fusion | None:
    state = vars(module).get("_fuse_state")
    return state if isinstance(state, _Fusion) else None


def _replace(fusion: _Fusion, name: str, module: nn.Module, function: Any, state: Any) -> None:
    if "forward" in vars(module):
        if name:
            fusion.refused[name] = "its forward was replaced by somebody else"
            return
        raise InvalidValue("the model's forward was replaced by another tool; call sp.fuse before it does that")
    # A bound method on the instance: the class stays what it is, and copy.deepcopy binds it to the copy.
    module.forward = types.MethodType(function, module)
    module._fuse_state = state  # pyright: ignore[reportArgumentType]
    fusion.modules[name] = module


def _model_forward(self: Any, *args: Any, **kwargs: Any) -> Any:
    outer = getattr(_running, "forward", None)
    if torch.compiler.is_compiling():
        return type(self).forward(self, *args, **kwargs)
    active = _running.forward = _Forward(self._fuse_state)
    try:
        if not torch.is_grad_enabled():
            return type(self).forward(self, *args, **kwargs)
        with torch.autograd.graph.saved_tensors_hooks(active.spikes.pack, active.spikes.unpack):
            result = type(self).forward(self, *args, **kwargs)
        _prove(active, result)
        return result
    finally:
        _running.forward = outer
        active.fired.clear()  # they hold what the forward needed, and through it themselves


def _prove(active: _Forward, result: Any) -> None:
    """Marks the BatchNorms whose result only a neuron read: nothing else hangs on it in the graph of `result`."""
    if not active.crossed and not active.pooled:
        return
    seen: set[Any] = set()
    front = [t.grad_fn for t in tree_leaves(result) if isinstance(t, Tensor) and t.grad_fn is not None]
    if not front:
        return
    while front:
        node = front.pop()
        if node not in seen:
            seen.add(node)
            front.extend(next_node for next_node, _ in node.next_functions if next_node is not None)
    for state, node in active.crossed.values():
        state.shared = node in seen
        state.proven = not state.shared
    for neuron, pool, node in active.pooled:
        neuron.shared = neuron.shared or node in seen
        neuron.pool, neuron.pool_name = pool.kind, pool.name


def _conv_forward(self: Any, x: Any) -> Tensor:
    """One image expanded over T gives one result expanded over T; of spikes only those that fire are visited."""
    plain, active = type(self).forward, _current()
    if active is None or not isinstance(x, Tensor):
        return plain(self, x)
    sequence = getattr(self, "step_mode", "s") == "m" and x.dim() == self.weight.dim() + 1
    if sequence and x.shape[0] > 1 and x.stride(0) == 0:
        return plain(self, x[:1]).expand(x.shape[0], *[-1] * (x.dim() - 1))
    if isinstance(self, nn.Conv2d) and x.dim() == (5 if sequence else 4):
        y = convolution(self, x.flatten(0, 1) if sequence else x, active.spikes)
        if y is not None:
            return y.unflatten(0, x.shape[:2]) if sequence else y
    return plain(self, x)


def _norm_forward(self: Any, x: Any) -> Any:
    plain, active = type(self).forward, _current()
    if active is None or not isinstance(x, Tensor):
        return plain(self, x.tensor() if isinstance(x, Pending) else x)
    state: NormState = self._fuse_state
    sequence = getattr(self, "step_mode", "s") == "m"
    made = bridge(self, state, x, sequence)
    if made is None:
        return plain(self, x)
    # Without a graph a reader can lose nothing by being handed a stand-in.
    if ((state.proven and not state.shared) or not made.graph) and not active.watched:
        track(self, made)
        return Pending(made, tuple(x.shape))
    result = plain(self, x)
    active.results.add(result, made)
    return result


def _pool_forward(self: Any, x: Any) -> Any:
    plain, active = type(self).forward, _current()
    state: _PoolState = self._fuse_state
    if active is not None and self.step_mode == "m":
        if isinstance(x, PendingSpikes):
            steps = x.sequence()
            if steps is not None and x.bridge.kind == state.kind:
                return x.bridge.spikes.unflatten(0, steps)
        elif isinstance(x, Tensor) and x.grad_fn is not None and not active.watched:
            fired = active.fired.get(x.untyped_storage().data_ptr())
            if (
                fired is not None
                and not fired.storage.expired()
                and (x._version, (x.shape, x.stride()), x.storage_offset()) == (fired.version, fired.form, 0)
            ):
                # As with a BatchNorm: whoever else reads the spikes shows in the graph of the result.
                active.pooled.append((fired.state, state, x.grad_fn))
                return fired.pooled(state.kind).unflatten(0, x.shape[:2])
    x = x.tensor() if isinstance(x, Pending) else x
    result = plain(self, x)
    if active is not None and state.kind == "max" and isinstance(x, Tensor) and active.spikes.knows(x):
        active.spikes.add(result)
    return result


def _neuron_forward(self: Any, *args: Any, **kwargs: Any) -> Any:
    plain, active = type(self).forward, _current()
    args = tuple(a.tensor() if isinstance(a, PendingSpikes) else a for a in args)
    if active is None or kwargs or len(args) != 1 or not _as_usual(self, active.fusion.adapter):
        return plain(self, *(a.tensor() if isinstance(a, Pending) else a for a in args), **kwargs)
    (x,) = args
    if isinstance(x, Pending):
        made, steps = x.bridge, x.sequence()
        if steps is None:
            return plain(self, x.tensor())
        T, N = steps
    else:
        if x.dim() < 3 or not x.is_floating_point():
            return plain(self, x)
        T, N = x.shape[:2]
        made = active.results.find(x)
        if made is not None and x.grad_fn is not None:
            active.crossed[id(made.state)] = made.state, x.grad_fn
    state: _NeuronState = self._fuse_state
    numbers = state.reader(active.fusion.adapter, self)
    if isinstance(numbers, str) or T * N == 0:
        return plain(self, x.tensor() if isinstance(x, Pending) else x)
    state.norm = made.state.name if made is not None else ""
    return _run(self, active, state, numbers, made, x, T, N)


def _run(
    neuron: Any, active: _Forward, state: _NeuronState, numbers: Any, made: Bridge | None, x: Any, T: int, N: int
) -> Tensor:
    if made is None:
        still = T > 1 and x.stride(0) == 0
        y = x[0] if still else x.flatten(0, 1)
        weight = bias = norm = None
    else:
        y, still, weight, bias, norm = made.y, made.still, made.weight, made.bias, made.norm
    space = y.shape[1:]
    v_start, start = carried(neuron, N, space)
    criticality = None
    if active.fusion.criticality is not None:
        criticality = torch.zeros(N, y.shape[1], device=y.device)
    numbers, leak = numbers.starting_at(start), leak_of(neuron)

    def run(pool: str, criticality: Tensor | None = None) -> tuple[Tensor, Tensor]:
        call = Call(T, numbers, norm, still, criticality, pool)
        spikes, v_last = fire(y, call, weight, bias, v_start, leak)
        if not numbers.smooth and pool != "avg":
            active.spikes.add(spikes)
        return spikes, v_last

    may_pool = not active.watched and not numbers.smooth and can_pool(y)
    pool = state.pool if may_pool and not state.shared else ""
    spikes, neuron.v = run(pool, criticality)
    if active.fusion.criticality is not None and criticality is not None:
        total, count = active.fusion.criticality.get(state.name, (0.0, 0))
        active.fusion.criticality[state.name] = total + criticality.sum(0), count + N
    if pool:
        made_by = Pooled(y, pool, spikes, lambda: run("")[0], lambda: _missed(state))
        return PendingSpikes(made_by, (T, N, *space))  # pyright: ignore[reportReturnType]
    result = spikes.unflatten(0, (T, N))
    if may_pool and not state.shared and result.grad_fn is not None:
        storage = spikes.untyped_storage()
        active.fired[storage.data_ptr()] = _Fired(
            state, StorageWeakRef(storage), spikes._version, (result.shape, result.stride()), lambda kind: run(kind)[0]
        )
    return result


def _missed(state: _NeuronState) -> None:
    """Somebody besides the pooling has read the spikes; from now on they are computed first, as without pooling."""
    state.shared = state.shared or torch.is_grad_enabled()


def _as_usual(neuron: Any, adapter: Adapter) -> bool:
    """Whether this call is one the kernel knows: a whole sequence, and nobody wants the potential of every step."""
    return (
        adapter.multi_step(neuron)
        and not getattr(neuron, "store_v_seq", False)
        and getattr(neuron, "_neuron_precision", None) is None
    )
