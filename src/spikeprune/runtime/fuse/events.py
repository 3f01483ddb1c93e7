"""Convolutions that read spikes: forward and the weights' gradient add up only where a neuron fired.

Most inputs of a spiking convolution are 0. Where a fused neuron has just made them, they are known as bits, and the
C++ kernel visits the set ones alone; what a dense convolution would spend on zeros is saved in the forward pass and in
the gradient of the weights. The gradient to the input stays dense: every neuron has a surrogate gradient.
"""

import ctypes
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from spikeprune.runtime.fuse.bits import SpikeStore
from spikeprune.runtime.fuse.kernel import kernels
from spikeprune.runtime.structs import ELEMENTS, EventStruct, pointer, run

# The forward pass adds spike by spike up to this share of inputs that fire; above it the dense convolution is faster
# (layers of VGG-16 on AVX2 break even between 35 % and 45 %). The weights' gradient gains at any share. A fixed number
# rather than a timing at hand: a resumed run must take the same path to the last bit.
MOST_ACTIVE = 0.3


def convolution(module: nn.Conv2d, x: Tensor, spikes: SpikeStore) -> Tensor | None:
    """The convolution of x [M, C, H, W] with its gradient; None if x is no tensor of spikes or the layer is unusual.

    Args:
        module: whose weight and bias to use.
        x: its input, samples of all steps.
        spikes: those made in this forward.
    """
    weight, padding = module.weight, module.padding
    if (
        not (torch.is_grad_enabled() and weight.requires_grad)
        or x.dtype not in (torch.float32, torch.float64)
        or weight.dtype != x.dtype
        or torch.is_autocast_enabled("cpu")
        or (module.stride, module.dilation, module.groups) != ((1, 1), (1, 1), 1)
        or isinstance(padding, str)
        or module.padding_mode != "zeros"
        or any(p > k - 1 for p, k in zip(padding, module.kernel_size, strict=True))
        or weight.stride(2) != weight.stride(3) * weight.shape[3]
    ):
        return None
    x_last = not x.is_contiguous()
    if x_last and not x.is_contiguous(memory_format=torch.channels_last):
        return None
    bits = spikes.find(x)
    if bits is None or bits.dtype == torch.bool:  # without a compiler spikes are kept as bytes
        return None
    y: Any = _SpikeConvolution.apply(x, weight, module.bias, bits, tuple(padding), x_last)
    return y


class _SpikeConvolution(torch.autograd.Function):
    """Stride-1 convolution of spikes x [M, inputs, H, W]; `bits` are x in its order of memory."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, bits: Tensor, padding: tuple[int, int], last: bool
    ) -> Tensor:
        library = kernels(x)
        assert library is not None
        form = torch.channels_last if last else torch.contiguous_format
        high, wide = (
            size + 2 * pad - kernel + 1
            for size, pad, kernel in zip(x.shape[2:], padding, weight.shape[2:], strict=True)
        )
        shape = (x.shape[0], weight.shape[0], high, wide)
        ctx.save_for_backward(weight, bits)
        ctx.shape, ctx.padding, ctx.last, ctx.form, ctx.biased = x.shape, padding, last, form, bias is not None
        if library.fuse_events_count(bits.numel(), pointer(bits)) > MOST_ACTIVE * x.numel():
            return F.conv2d(x, weight, bias, padding=padding).contiguous(memory_format=form)
        y = torch.empty(shape, dtype=x.dtype, memory_format=form)
        run(
            "a convolution of spikes",
            library.fuse_events_forward(
                ctypes.byref(_spec(x.shape, y, weight, padding, last)), ELEMENTS[x.dtype], pointer(bits),
                pointer(weight), pointer(bias), pointer(y),
            ),
        )  # fmt: skip
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Any:
        weight, bits = ctx.saved_tensors
        g = g.contiguous(memory_format=ctx.form)
        g_x = g_weight = g_bias = None
        if ctx.needs_input_grad[1]:
            library = kernels(g)
            assert library is not None
            g_weight = torch.empty_strided(weight.shape, weight.stride(), dtype=weight.dtype)
            run(
                "the gradient of a convolution of spikes",
                library.fuse_events_weight(
                    ctypes.byref(_spec(ctx.shape, g, weight, ctx.padding, ctx.last)), ELEMENTS[g.dtype],
                    pointer(bits), pointer(g), pointer(g_weight),
                ),
            )  # fmt: skip
        if ctx.needs_input_grad[0]:
            # Needs no x, so that nothing has to be unpacked.
            g_x = F.conv_transpose2d(g, weight, padding=ctx.padding)
        if ctx.biased and ctx.needs_input_grad[2]:
            g_bias = g.sum((0, 2, 3))
        return g_x, g_weight, g_bias, None, None, None


def _spec(x_shape: torch.Size, y: Tensor, weight: Tensor, padding: tuple[int, int], last: bool) -> EventStruct:
    return EventStruct(
        *x_shape, *y.shape[1:], *weight.shape[2:], *padding, weight.stride(0), weight.stride(1), weight.stride(3),
        last, last, torch.get_num_threads(),
    )  # fmt: skip
