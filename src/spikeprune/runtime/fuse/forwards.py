"""Forwards that replace those of modules inside a fused model."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_leaves

from spikeprune.model.fusing import Fusing
from spikeprune.runtime.fuse.bits import SpikeStore
from spikeprune.runtime.fuse.events import convolution
from spikeprune.runtime.fuse.kernel import Call, can_pool, fire
from spikeprune.runtime.fuse.neurons import Reader
from spikeprune.runtime.fuse.norm import Bridge, NormState, Pending, PendingSpikes, Pooled, Results, bridge, track


@dataclass
class NeuronState:
    name: str
    reader: Reader
    fusing: Fusing
    norm: str | None = None
    # The pooling behind it, once a forward with gradient has shown that it alone reads the spikes, and its name.
    pool: str = ""
    pool_name: str = ""
    shared: bool = False  # something besides the pooling reads the spikes

    def usual(self, neuron: nn.Module) -> bool:
        """Whether this call is one the kernel knows: a whole sequence, and nobody wants more than spikes."""
        return self.reader.adapter.multi_step(neuron) and self.fusing.usual(neuron)


@dataclass
class PoolState:
    name: str
    fusing: Fusing
    kind: str  # "max" or "avg"


@dataclass
class Fusion:
    """The state that the fused model carries. `modules` are those whose forward was replaced."""

    modules: dict[str, nn.Module] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    # Sum over samples of the criticality [C], and their number, per neuron; None when nobody asked.
    criticality: dict[str, tuple[Tensor, int]] | None = None


@dataclass
class _Fired:
    """A neuron's spikes [T, N, C, *space], and how to compute them once more pooled."""

    state: NeuronState
    storage: StorageWeakRef
    version: int
    form: tuple[Any, ...]  # shape and stride
    pooled: Callable[[str], Tensor]


class _Forward:
    """One forward of the fused model."""

    def __init__(self, fusion: Fusion) -> None:
        self.fusion = fusion
        self.spikes = SpikeStore()
        self.results = Results()
        self.crossed: dict[int, tuple[NormState, Any]] = {}  # results that a neuron went back over, with their node
        self.fired: dict[int, _Fired] = {}  # by the spikes' memory
        self.pooled: list[tuple[NeuronState, PoolState, Any]] = []  # likewise: spikes that a pooling went back over
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


def model_forward(self: Any, *args: Any, **kwargs: Any) -> Any:
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


def conv_forward(self: Any, x: Any) -> Tensor:
    """A convolution's forward: an image that is expanded over T is convolved once, and only spikes are added up."""
    plain, active = type(self).forward, _current()
    if active is None or not isinstance(x, Tensor):
        return plain(self, x)
    fusing: Fusing = self._fuse_state
    sequence = fusing.sequence(self) and x.dim() == self.weight.dim() + 1
    if sequence and x.shape[0] > 1 and x.stride(0) == 0:
        return plain(self, x[:1]).expand(x.shape[0], *[-1] * (x.dim() - 1))
    if isinstance(self, nn.Conv2d) and x.dim() == (5 if sequence else 4):
        y = convolution(self, x.flatten(0, 1) if sequence else x, active.spikes)
        if y is not None:
            return y.unflatten(0, x.shape[:2]) if sequence else y
    return plain(self, x)


def norm_forward(self: Any, x: Any) -> Any:
    plain, active = type(self).forward, _current()
    if active is None or not isinstance(x, Tensor):
        return plain(self, x.tensor() if isinstance(x, Pending) else x)
    state: NormState = self._fuse_state
    sequence = state.fusing.sequence(self)
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


def pool_forward(self: Any, x: Any) -> Any:
    plain, active = type(self).forward, _current()
    state: PoolState = self._fuse_state
    if active is not None and state.fusing.sequence(self):
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


def neuron_forward(self: Any, *args: Any, **kwargs: Any) -> Any:
    plain, active = type(self).forward, _current()
    args = tuple(a.tensor() if isinstance(a, PendingSpikes) else a for a in args)
    state: NeuronState = self._fuse_state
    if active is None or kwargs or len(args) != 1 or not state.usual(self):
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
    numbers = state.reader(self)
    if isinstance(numbers, str) or T * N == 0:
        return plain(self, x.tensor() if isinstance(x, Pending) else x)
    state.norm = made.state.name if made is not None else ""
    return _run(self, active, state, numbers, made, x, T, N)


def _run(
    neuron: Any, active: _Forward, state: NeuronState, numbers: Any, made: Bridge | None, x: Any, T: int, N: int
) -> Tensor:
    if made is None:
        is_static = T > 1 and x.stride(0) == 0
        y = x[0] if is_static else x.flatten(0, 1)
        weight = bias = norm = None
    else:
        y, is_static, weight, bias, norm = made.y, made.is_static, made.weight, made.bias, made.norm
    space = y.shape[1:]
    before = state.fusing.carried(neuron, N, tuple(space))
    v_start, start = (before, 0.0) if isinstance(before, Tensor) else (None, float(before))
    criticality = None
    if active.fusion.criticality is not None:
        criticality = torch.zeros(N, y.shape[1], device=y.device)
    learned = state.fusing.leak(neuron)
    numbers, leak = numbers.starting_at(start), None if learned is None else learned.value

    def run(pool: str, criticality: Tensor | None = None) -> tuple[Tensor, Tensor]:
        call = Call(T, numbers, norm, is_static, criticality, pool)
        spikes, v_last = fire(y, call, weight, bias, v_start, leak)
        if not numbers.smooth and pool != "avg":
            active.spikes.add(spikes)
        return spikes, v_last

    may_pool = not active.watched and not numbers.smooth and can_pool(y)
    pool = state.pool if may_pool and not state.shared else ""
    spikes, v_last = run(pool, criticality)
    state.fusing.carry(neuron, v_last)
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


def _missed(state: NeuronState) -> None:
    """Somebody besides the pooling has read the spikes; from now on they are computed first, as without pooling."""
    state.shared = state.shared or torch.is_grad_enabled()
