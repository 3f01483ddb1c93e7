"""The bridge from a BatchNorm to the neuron that reads it.

While a fused model runs, its BatchNorms leave a `Bridge` from what they return to what they were given. A neuron whose
input is exactly such a result goes back over the bridge and computes both at once; whoever else reads the result gets
a true tensor. Computing that tensor is wasted where only the neuron would read it, so once a forward has shown
that, the BatchNorm hands out a `Pending` instead: a stand-in that becomes the tensor if anybody touches it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_map

from spikeprune.model.fusing import Fusing
from spikeprune.runtime.fuse.call import Norm
from spikeprune.runtime.fuse.kernel import statistics
from spikeprune.runtime.fuse.reference import normalised


@dataclass
class NormState:
    """The state that fusing keeps for one BatchNorm.

    proven: a forward with gradient has shown that only a fused neuron reads the result.
    """

    name: str
    per_step: bool
    fusing: Fusing
    proven: bool = False
    neuron: str = ""
    shared: bool = False  # something besides the neuron reads the result


@dataclass
class Bridge:
    """One call of a BatchNorm on y [T * N, C, *space], or on [N, C, *space] if `is_static`: the same at all T steps."""

    state: NormState
    y: Tensor
    T: int
    is_static: bool
    weight: Tensor | None
    bias: Tensor | None
    eps: float
    running: tuple[Tensor, Tensor] | None  # mean and variance to use instead of the batch's own
    graph: bool = field(default_factory=torch.is_grad_enabled)
    _norm: Norm | None = None
    _tensor: Tensor | None = None

    @property
    def norm(self) -> Norm:
        """The statistics, computed once."""
        if self._norm is None:
            if self.running is not None:
                mean, var = (t.detach().double() for t in self.running)
            else:
                steps = 1 if self.is_static else self.T
                mean, var = statistics(self.y, steps, self.state.per_step and steps > 1)
            self._norm = Norm(mean, var, self.eps, batch=self.running is None)
        return self._norm

    def repeated(self, T: int) -> "Bridge":
        """A bridge of this BatchNorm call whose one result stands for all T steps; it is stored once (`is_static`)."""
        if T == self.T:
            return self
        return replace(self, T=T, is_static=T > 1, _norm=self.norm, _tensor=None)

    def tensor(self) -> Tensor:
        """The result of the BatchNorm, [T * N, C, *space].

        It is part of the autograd graph if the BatchNorm was called with gradients enabled.
        """
        if self._tensor is None:
            self.state.shared = self.state.shared or self.graph
            # A reader under no_grad may be followed by one that needs the gradient.
            with torch.set_grad_enabled(self.graph):
                x = normalised(self.y, 1 if self.is_static else self.T, self.norm, self.weight, self.bias)
                self._tensor = x.repeat(self.T, *[1] * (x.dim() - 1)) if self.is_static else x
        return self._tensor


def bridge(module: Any, state: NormState, x: Tensor, sequence: bool) -> Bridge | None:
    """The bridge for a call on x: [T, N, C, *space] if `sequence`, else [T * N, C, *space]; None if it has none."""
    batch = module.training or module.running_mean is None
    if sequence:
        T, is_static = x.shape[0], x.shape[0] > 1 and x.stride(0) == 0
        y = x[0] if is_static else x.flatten(0, 1)
    else:
        if state.per_step:
            return None
        T, is_static, y = 1, False, x
    if y.dim() < 2 or y.shape[1] != module.num_features:
        return None  # the module itself says what is wrong
    count = y.numel() // y.shape[1] // (T if state.per_step and not is_static else 1)
    if batch and count < 2:
        return None
    running: Any = None if batch else (module.running_mean, module.running_var)
    return Bridge(state, y, T, is_static, module.weight, module.bias, module.eps, running)


def track(module: Any, made: Bridge) -> None:
    """Moves the running averages as the BatchNorm itself would have done."""
    if not (module.training and module.track_running_stats and module.running_mean is not None):
        return
    norm = made.norm
    own_steps = made.state.per_step
    repeats = made.T if own_steps else 1
    count = made.y.numel() // made.y.shape[1] // (repeats if own_steps and not made.is_static else 1)
    if made.is_static and not own_steps:
        count *= made.T  # the same image at every step counts T times
    with torch.no_grad():
        for t in range(repeats):
            module.num_batches_tracked.add_(1)
            momentum = 1.0 / float(module.num_batches_tracked) if module.momentum is None else module.momentum
            mean, var = (v[t] if v.dim() == 2 else v for v in (norm.mean, norm.var))
            for average, new in ((module.running_mean, mean), (module.running_var, var * (count / (count - 1)))):
                average.mul_(1 - momentum).add_(new.to(average.dtype), alpha=momentum)


class Pending:
    """A BatchNorm's result that nobody has computed yet. Reading it in any way gives the tensor.

    Not a Tensor on purpose: code that looks past Python's protocols fails loudly instead of reading nothing. Views
    that only split or join T and N, or repeat over T, stay pending.
    """

    def __init__(self, bridge: Any, shape: tuple[int, ...]) -> None:
        self.bridge = bridge
        self.shape = torch.Size(shape)

    def tensor(self) -> Tensor:
        """The BatchNorm's result in the shape that this view has."""
        return self.bridge.tensor().view(self.shape)

    def sequence(self) -> tuple[int, int] | None:
        """(T, N) if the shape is [T, N, C, *space], else None."""
        rest = self.bridge.y.shape[1:]
        if len(self.shape) == len(rest) + 2 and self.shape[2:] == rest:
            return self.shape[0], self.shape[1]
        return None

    @property
    def dtype(self) -> torch.dtype:
        return self.bridge.y.dtype

    @property
    def device(self) -> torch.device:
        return self.bridge.y.device

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def dim(self) -> int:
        return len(self.shape)

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]

    def contiguous(self, *args: Any, **kwargs: Any) -> Any:
        return self if not args and not kwargs else self.tensor().contiguous(*args, **kwargs)

    def unflatten(self, dim: int, sizes: tuple[int, ...]) -> Any:
        """Splits T * N into T and N."""
        if dim == 0 and len(sizes) == 2 and self.shape[1:] == self.bridge.y.shape[1:]:
            T, N = sizes
            T, N = (self.shape[0] // N, N) if T == -1 else (T, self.shape[0] // T if N == -1 else N)
            if self.shape[0] == T * N:
                return type(self)(self.bridge, (T, N, *self.shape[1:]))
        return self.tensor().unflatten(dim, sizes)

    def view(self, *shape: Any) -> Any:
        sizes = shape[0] if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
        rest = self.bridge.y.shape[1:]
        if all(isinstance(s, int) and s >= 0 for s in sizes) and tuple(sizes[2:]) == tuple(rest):
            return type(self)(self.bridge, tuple(sizes))
        return self.tensor().view(*shape)

    def expand(self, *sizes: Any) -> Any:
        """`Tensor.expand`. Repeating the one step of a sequence over T stays fused; anything else makes the tensor."""
        wanted = tuple(sizes[0]) if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)) else sizes
        made = self.bridge
        if self.sequence() is not None and self.shape[0] == 1 and made.T == 1 and wanted[1:] == tuple(self.shape[1:]):
            return type(self)(made.repeated(wanted[0]), wanted)
        return self.tensor().expand(*sizes)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map(lambda a: a.tensor() if isinstance(a, Pending) else a, (args, kwargs or {}))
        return func(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.tensor(), name)


@dataclass
class Pooled:
    """The output of a fused neuron that only a pooling layer reads: pooled spikes in place of its spikes.

    spikes: pooled already, [T * N, C, *space]. again: computes the spikes [T * N, C, *space] themselves.
    """

    y: Tensor
    kind: str
    spikes: Tensor
    again: Callable[[], Tensor]
    missed: Callable[[], None]  # told that somebody else reads them
    T: int = 0  # spikes are never one step for all T

    def tensor(self) -> Tensor:
        """The spikes."""
        self.missed()
        return self.again()


class PendingSpikes(Pending):
    """The spikes of a neuron whose `Pooled` has not been asked for them."""


def _forwarded(name: str) -> Any:
    def method(self: Pending, *args: Any) -> Any:
        args = tuple(a.tensor() if isinstance(a, Pending) else a for a in args)
        return getattr(self.tensor(), name)(*args)

    return method


for _name in (
    "add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "pow", "matmul", "neg", "abs", "getitem",
    "len", "iter", "lt", "le", "gt", "ge", "eq", "ne", "bool", "float", "array", "and", "or", "invert",
):  # fmt: skip
    setattr(Pending, f"__{_name}__", _forwarded(f"__{_name}__"))
Pending.__hash__ = object.__hash__  # a class with its own == loses it


@dataclass
class _Result:
    storage: StorageWeakRef
    version: int  # moves when somebody writes into the result
    stride: tuple[int, ...]  # of [N, C, *space]
    made: Bridge


class Results:
    """The true results of this forward's BatchNorms, each with the bridge to its input."""

    def __init__(self) -> None:
        self.known: dict[int, _Result] = {}

    def add(self, result: Tensor, made: Bridge) -> None:
        """Registers the result of a BatchNorm, [T, N, C, *space] or [T * N, C, *space]."""
        storage = result.untyped_storage()
        stride = result.stride()[-made.y.dim() :]
        self.known[storage.data_ptr()] = _Result(StorageWeakRef(storage), result._version, stride, made)

    def find(self, x: Tensor) -> Bridge | None:
        """The bridge if x [T, N, C, *space] is one of the results, untouched, whole and in its order of elements."""
        known = self.known.get(x.untyped_storage().data_ptr())
        if known is None or known.storage.expired() or x._version != known.version or x.storage_offset() != 0:
            return None
        made = known.made
        y = made.y
        if x.dim() != y.dim() + 1 or x.shape[2:] != y.shape[1:]:
            return None
        if any(a != b for a, b, size in zip(x.stride()[1:], known.stride, x.shape[1:], strict=True) if size > 1):
            return None
        T, N = x.shape[:2]
        if T > 1 and x.stride(0) == 0:
            whole = y.shape[0] == N and made.T in (1, T)
            return made.repeated(T) if whole and (made.is_static or made.T == 1) else None
        if made.is_static:
            return made if (made.T, y.shape[0]) == (T, N) else None
        return made if y.shape[0] == T * N and (min(T, N) == 1 or x.stride(0) == N * x.stride(1)) else None
