"""BatchNorm and neuron as one differentiable function, computed by the C++ kernel or by PyTorch.

    x = weight * (y - mean) / sqrt(var + eps) + bias
    h = decay * v + gain * x + offset,  s = step(h - v_threshold),  v = s ? reset_scale * h + reset_shift : h

Both ways keep y alone until backward and compute everything else again. The kernel takes float32, bfloat16 and
float64 on the CPU; everything else, and machines without a compiler, take the PyTorch way, on any device.

Shapes: T steps, N samples, C channels; y is [T * N, C, *space], or [N, C, *space] if one step drives all T.
"""

import ctypes
import math
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from spikeprune.runtime import native
from spikeprune.runtime.structs import ELEMENTS, POOLS, SURROGATES, FuseStruct, pointer, run

# Starting a thread costs some 20 microseconds; this many elements are worth one.
_ELEMENTS_PER_THREAD = 1 << 16


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

    def starting_at(self, v: float) -> "Neuron":
        """The same neuron with another potential before the first step."""
        return self if v == self.v_start else replace(self, v_start=v)


@dataclass(frozen=True)
class Norm:
    """What BatchNorm divides by. mean and (biased) var are float64, [C], or [T, C] if each step has its own.

    `batch` says that they are those of y itself, so that the gradient also runs through them.
    """

    mean: Tensor
    var: Tensor
    eps: float
    batch: bool

    @property
    def per_step(self) -> bool:
        return self.mean.dim() == 2


def kernels(y: Tensor) -> ctypes.CDLL | None:
    """The kernel library, if it takes a tensor like y."""
    if y.device.type != "cpu" or y.dtype not in ELEMENTS:
        return None
    return native.library("fuse")


def layout(y: Tensor) -> torch.memory_format:
    """The memory format of y if it has one, else the one to bring it into."""
    if y.dim() == 4 and not y.is_contiguous() and y.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


def _fold(y: Tensor, form: torch.memory_format) -> int:
    """Small contiguous maps count as so many channels each, so that the kernel's loops are long enough."""
    positions = math.prod(y.shape[2:])
    return positions if positions < 64 and form == torch.contiguous_format else 1


def _spec(
    y: Tensor, T: int, still: bool, per_step: bool, neuron: Neuron | None, form: torch.memory_format, pool: str = ""
) -> FuseStruct:
    positions, fold = math.prod(y.shape[2:]), _fold(y, form)
    spec = FuseStruct(
        T=T,
        N=y.shape[0] // (1 if still else T),
        C=y.shape[1] * fold,
        P=positions // fold,
        W=y.shape[-1],
        channels_last=positions == fold or form == torch.channels_last,
        per_step=per_step,
        still=still,
        threads=max(1, min(torch.get_num_threads(), y.numel() // _ELEMENTS_PER_THREAD)),
        pool=POOLS.index(pool),
    )
    if neuron is not None:
        spec.surrogate = SURROGATES.index(neuron.surrogate)
        for name in ("smooth", "strict", "detach_reset", "decay", "gain", "offset", "v_threshold", "reset_scale",
                     "reset_shift", "v_start", "alpha"):  # fmt: skip
            setattr(spec, name, getattr(neuron, name))
    return spec


def statistics(y: Tensor, T: int, per_step: bool) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of y [T * N, C, *space] per channel, in float64: [C], or [T, C] if `per_step`."""
    y = y.detach()
    library = kernels(y)
    if library is None:
        groups = y.unflatten(0, (T, -1)) if per_step else y.unsqueeze(0)
        dims = [1, *range(3, groups.dim())]
        var, mean = torch.var_mean(groups.double(), dims, correction=0)
        return (mean, var) if per_step else (mean[0], var[0])
    form = layout(y)
    y = y.contiguous(memory_format=form)
    spec, fold = _spec(y, T, False, per_step, None, form), _fold(y, form)
    mean, var = torch.empty(2, T if per_step else 1, spec.C, dtype=torch.float64)
    status = library.fuse_statistics(ctypes.byref(spec), ELEMENTS[y.dtype], pointer(y), pointer(mean), pointer(var))
    run("the statistics of a fused BatchNorm", status)
    if fold > 1:  # of each position, all with the same count
        means, mean = mean.unflatten(1, (-1, fold)), mean.unflatten(1, (-1, fold)).mean(2)
        var = (var.unflatten(1, (-1, fold)) + (means - mean.unsqueeze(2)).square()).mean(2)
    return (mean, var) if per_step else (mean[0], var[0])


@dataclass
class Call:
    """One call of `fire`: what is not differentiated.

    still: y is one step that drives all T. criticality: zeros [N, C] in float32, filled with the maximum over space of
    the mean over T of the surrogate's derivative at h - v_threshold. pool: "max" or "avg" of the spikes over 2x2
    positions, where `can_pool` says so.
    """

    T: int
    neuron: Neuron
    norm: Norm | None = None
    still: bool = False
    criticality: Tensor | None = None
    pool: str = ""


def can_pool(y: Tensor) -> bool:
    """Whether `fire` can pool the spikes that y leads to: even maps; for the kernel also channels last."""
    if y.dim() != 4 or y.shape[2] % 2 or y.shape[3] % 2:
        return False
    return kernels(y) is None or layout(y) == torch.channels_last


def fire(
    y: Tensor,
    call: Call,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    v_start: Tensor | None = None,
    leak: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Spikes [T * N, C, *space] (half of it where they are pooled) and last membrane potential [N, C, *space].

    Args:
        y: [T * N, C, *space], or [N, C, *space] if `call.still`.
        call: neuron, statistics and number of steps.
        weight, bias: BatchNorm's affine parameters [C], if it has any.
        v_start: potential carried over from an earlier call, [N, C, *space].
        leak: the scalar that a neuron with learned decay takes its decay from; its value stands in `call` already.
    """
    way = _Recomputed if kernels(y) is None else _Fused
    return way.apply(y, weight, bias, v_start, leak, call)  # pyright: ignore[reportReturnType]


class _Fused(torch.autograd.Function):
    """The C++ kernel."""

    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        v_start: Tensor | None,
        leak: Tensor | None,
        call: Call,
    ) -> tuple[Tensor, Tensor]:
        library = kernels(y)
        assert library is not None
        form = torch.channels_last if call.pool else layout(y)
        y = y.contiguous(memory_format=form)
        per_step = call.norm is not None and call.norm.per_step
        spec = _spec(y, call.T, call.still, per_step, call.neuron, form, call.pool)
        fold = _fold(y, form)
        compute = torch.float64 if y.dtype == torch.float64 else torch.float32
        mean, inverse, scale, shift = _affine(y, call.norm, weight, bias)
        scale, shift, means = (t.to(compute).repeat_interleave(fold, -1) for t in (scale, shift, mean))
        if v_start is not None:
            v_start = v_start.to(y.dtype).contiguous(memory_format=form)
        space = [size // 2 for size in y.shape[2:]] if call.pool else y.shape[2:]
        spikes = torch.empty((call.T * spec.N, y.shape[1], *space), dtype=y.dtype, memory_format=form)
        v_last = torch.empty((spec.N, *y.shape[1:]), dtype=y.dtype, memory_format=form)
        near = None if call.criticality is None else call.criticality.new_zeros(spec.N, spec.C)
        status = library.fuse_forward(
            ctypes.byref(spec), ELEMENTS[y.dtype], pointer(y), pointer(scale), pointer(shift),
            pointer(v_start), pointer(spikes), pointer(v_last), pointer(near),
        )  # fmt: skip
        run("a fused neuron", status)
        if near is not None and call.criticality is not None:
            call.criticality.copy_(near.unflatten(1, (-1, fold)).amax(2))
        ctx.save_for_backward(y, weight, bias, v_start, leak)
        ctx.small = mean, inverse, scale, shift, means  # per channel
        ctx.spec, ctx.fold, ctx.call, ctx.form = spec, fold, call, form
        ctx.set_materialize_grads(False)
        return spikes, v_last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_spikes: Tensor | None, g_last: Tensor | None) -> Any:
        saved: Any = ctx.saved_tensors
        y, weight, bias, v_start, leak = saved
        mean, inverse, scale, shift, means = ctx.small
        spec: FuseStruct = ctx.spec
        fold: int = ctx.fold
        call: Call = ctx.call
        library = kernels(y)
        assert library is not None
        kind = ELEMENTS[y.dtype]
        if g_spikes is not None:
            g_spikes = g_spikes.contiguous(memory_format=ctx.form)
        if g_last is not None:
            g_last = g_last.contiguous(memory_format=ctx.form)
        g_y = torch.empty_like(y)
        g_start = None if v_start is None else torch.empty_like(v_start)
        sum_g, sum_gy = torch.empty(2, *scale.shape, dtype=torch.float64)
        sum_leak = None if leak is None else torch.empty(3, *scale.shape, dtype=torch.float64)
        status = library.fuse_backward(
            ctypes.byref(spec), kind, pointer(g_spikes), pointer(g_last), pointer(y), pointer(scale),
            pointer(shift), pointer(means), pointer(v_start), pointer(g_y), pointer(g_start), pointer(sum_g),
            pointer(sum_gy), pointer(sum_leak),
        )  # fmt: skip
        run("the gradient of a fused neuron", status)
        sum_g, sum_gy = (t.unflatten(-1, (-1, fold)).sum(-1) for t in (sum_g, sum_gy))
        if call.norm is not None:
            gamma = 1.0 if weight is None else weight.detach().double()
            by_g = (gamma * inverse).expand_as(mean)
            by_y = torch.zeros_like(mean)
            constant = torch.zeros_like(mean)
            if call.norm.batch:
                # The gradient through mean and variance: g - average(g) - (y - mean) / var * average(g (y - mean)).
                count = spec.N * spec.P * fold * (1 if call.norm.per_step or call.still else call.T)
                by_y = -by_g * inverse.square() * sum_gy / count
                constant = -by_g * sum_g / count - by_y * mean
            arrays = [t.to(scale.dtype).repeat_interleave(fold, -1) for t in (by_g, by_y, constant)]
            run(
                "the gradient of a fused BatchNorm",
                library.fuse_through_norm(
                    ctypes.byref(spec), kind, pointer(g_y), pointer(y), *(pointer(t) for t in arrays)
                ),
            )
        g_weight = None if weight is None else _per_channel(sum_gy * inverse).to(weight.dtype)
        g_bias = None if bias is None else _per_channel(sum_g).to(bias.dtype)
        g_leak = None
        if sum_leak is not None and leak is not None:
            d_decay, d_gain, d_offset = call.neuron.slopes
            one, by_v, by_x = sum_leak.flatten(1).sum(1)
            g_leak = (d_decay * by_v + d_gain * by_x + d_offset * one).to(leak.dtype).reshape(leak.shape)
        return g_y, g_weight, g_bias, g_start, g_leak, None


def _affine(y: Tensor, norm: Norm | None, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor, ...]:
    """mean, 1 / deviation, and the scale and shift that normalise y; float64, [C] or [T, C]."""
    if norm is None:
        zero, one = torch.zeros(2, y.shape[1], dtype=torch.float64).index_fill_(0, torch.tensor(1), 1.0)
        return zero, one, one, zero
    inverse = (norm.var + norm.eps).rsqrt()
    scale = inverse if weight is None else weight.detach().double() * inverse
    shift = -norm.mean * scale if bias is None else bias.detach().double() - norm.mean * scale
    return norm.mean, inverse, scale.contiguous(), shift.contiguous()


def _per_channel(sums: Tensor) -> Tensor:
    return sums.sum(0) if sums.dim() == 2 else sums


class _Recomputed(torch.autograd.Function):
    """The PyTorch way: `reference` without a graph, and once more with one in backward."""

    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        v_start: Tensor | None,
        leak: Tensor | None,
        call: Call,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(y, weight, bias, v_start, leak)
        ctx.call = call
        ctx.set_materialize_grads(False)
        return reference(y, call, weight, bias, v_start, leak)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_spikes: Tensor | None, g_last: Tensor | None) -> Any:
        with torch.enable_grad():
            inputs: list[Any] = [
                None if t is None else t.detach().requires_grad_(needed)
                for t, needed in zip(ctx.saved_tensors, ctx.needs_input_grad, strict=False)
            ]
            y, weight, bias, v_start, leak = inputs
            call: Call = ctx.call
            outputs = reference(y, replace(call, criticality=None), weight, bias, v_start, leak)
        wanted = [t for t in inputs if t is not None and t.requires_grad]
        pairs = [(o, g) for o, g in zip(outputs, (g_spikes, g_last), strict=True) if g is not None and o.requires_grad]
        found = iter(
            torch.autograd.grad([o for o, _ in pairs], wanted, [g for _, g in pairs], allow_unused=True)
            if pairs
            else [None] * len(wanted)
        )
        return (*(next(found) if t is not None and t.requires_grad else None for t in inputs), None)


def reference(
    y: Tensor,
    call: Call,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    v_start: Tensor | None = None,
    leak: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`fire` in plain PyTorch, differentiable as it stands; arguments as there."""
    n = call.neuron
    x = y if call.norm is None else normalised(y, call.T, call.norm, weight, bias)
    steps = [x] * call.T if call.still else list(x.unflatten(0, (call.T, -1)))
    wide = torch.float64 if y.dtype == torch.float64 else torch.float32
    decay, gain, offset = n.decay, n.gain, n.offset
    if leak is not None:  # linear in the leak, so value and slopes say everything
        move = leak.to(wide) - leak.detach().to(wide)
        decay, gain, offset = (a + b * move for a, b in zip((decay, gain, offset), n.slopes, strict=True))
    v = torch.full_like(steps[0], n.v_start, dtype=wide) if v_start is None else v_start.to(wide)
    spikes: list[Tensor] = []
    near = torch.zeros_like(v)
    for x_step in steps:
        h = decay * v + (gain * x_step.to(wide) + offset)
        u = h - n.v_threshold
        s = curve(n, u) if n.smooth else _Step.apply(u, n)
        if call.criticality is not None:
            near += slope(n, u)
        fired = s.detach() if n.detach_reset else s
        v = fired * (n.reset_scale * h + n.reset_shift) + (1 - fired) * h
        spikes.append(s.to(y.dtype))
    if call.criticality is not None:
        call.criticality.copy_((near / call.T).flatten(2).amax(-1) if near.dim() > 2 else near / call.T)
    fired = torch.cat(spikes)
    if call.pool:
        fired = F.max_pool2d(fired, 2) if call.pool == "max" else F.avg_pool2d(fired, 2)
    return fired, v.to(y.dtype)


def normalised(y: Tensor, T: int, norm: Norm, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """BatchNorm of y by the given statistics, differentiable also through them if they are y's own."""
    if norm.batch:
        if norm.per_step:
            steps = y.unflatten(0, (T, -1))
            return torch.cat([F.batch_norm(s, None, None, weight, bias, True, 0.0, norm.eps) for s in steps])
        return F.batch_norm(y, None, None, weight, bias, True, 0.0, norm.eps)
    wide = torch.float64 if y.dtype == torch.float64 else torch.float32
    return F.batch_norm(y, norm.mean.to(wide), norm.var.to(wide), weight, bias, False, 0.0, norm.eps)


def slope(neuron: Neuron, u: Tensor) -> Tensor:
    """The surrogate's derivative at u = h - v_threshold."""
    a = neuron.alpha
    if neuron.surrogate == "atan":
        return a / 2 / (1 + (math.pi / 2 * a * u).square())
    if neuron.surrogate == "sigmoid":
        s = torch.sigmoid(a * u)
        return a * s * (1 - s)
    inside = a * (1 - torch.tanh(a * u).square()) / (2 * math.tanh(a / 2))
    return inside.masked_fill(u.abs() > 0.5, 0.0)


def curve(neuron: Neuron, u: Tensor) -> Tensor:
    """The smooth function that `slope` is the derivative of, from 0 to 1."""
    a = neuron.alpha
    if neuron.surrogate == "atan":
        return torch.atan(math.pi / 2 * a * u) / math.pi + 0.5
    if neuron.surrogate == "sigmoid":
        return torch.sigmoid(a * u)
    return torch.tanh(a * u.clamp(-0.5, 0.5)) / (2 * math.tanh(a / 2)) + 0.5


class _Step(torch.autograd.Function):
    """1 where u reaches 0, with the surrogate's derivative in backward."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, neuron: Neuron) -> Tensor:
        ctx.save_for_backward(u)
        ctx.neuron = neuron
        return (u > 0 if neuron.strict else u >= 0).to(u.dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        (u,) = ctx.saved_tensors
        return g * slope(ctx.neuron, u), None
