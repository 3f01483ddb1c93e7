"""BatchNorm and neuron as one differentiable function, computed by the C++ kernel or by PyTorch.

    x = weight * (y - mean) / sqrt(var + eps) + bias
    h = decay * v + gain * x + offset,  s = step(h - v_threshold),  v = s ? reset_scale * h + reset_shift : h

Both ways keep y alone until backward and compute everything else again. The kernel takes float32, bfloat16 and
float64 on the CPU; everything else, surrogates that it does not know, and machines without a compiler take the PyTorch
way, on any device.

Shapes: T steps, N samples, C channels; y is [T * N, C, *space], or [N, C, *space] if all T steps are the same.
"""

import ctypes
import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from spikeprune.runtime import native
from spikeprune.runtime.fuse.call import Call, Neuron, Norm
from spikeprune.runtime.fuse.reference import Recomputed, reference
from spikeprune.runtime.structs import ELEMENTS, POOLS, SURROGATES, FuseStruct, pointer, run

# Starting a thread costs some 20 microseconds; this many elements are worth one.
_ELEMENTS_PER_THREAD = 1 << 16


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
    y: Tensor, T: int, is_static: bool, per_step: bool, neuron: Neuron | None, form: torch.memory_format, pool: str = ""
) -> FuseStruct:
    positions, fold = math.prod(y.shape[2:]), _fold(y, form)
    spec = FuseStruct(
        T=T,
        N=y.shape[0] // (1 if is_static else T),
        C=y.shape[1] * fold,
        P=positions // fold,
        W=y.shape[-1],
        channels_last=positions == fold or form == torch.channels_last,
        per_step=per_step,
        is_static=is_static,
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
        y: [T * N, C, *space], or [N, C, *space] if `call.is_static`.
        call: neuron, statistics and number of steps.
        weight, bias: BatchNorm's affine parameters [C], if it has any.
        v_start: potential carried over from an earlier call, [N, C, *space].
        leak: the scalar that a neuron with learned decay takes its decay from; its value stands in `call` already.
    """
    way = Recomputed if kernels(y) is None or call.neuron.own is not None else _Fused
    return way.apply(y, weight, bias, v_start, leak, call)  # pyright: ignore[reportReturnType]


class _Fused(torch.autograd.Function):
    """`fire` by the C++ kernel, with its backward pass."""

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
        spec = _spec(y, call.T, call.is_static, per_step, call.neuron, form, call.pool)
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
                count = spec.N * spec.P * fold * (1 if call.norm.per_step or call.is_static else call.T)
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


__all__ = ["POOLS", "SURROGATES", "Call", "Neuron", "Norm", "can_pool", "fire", "kernels", "reference", "statistics"]
