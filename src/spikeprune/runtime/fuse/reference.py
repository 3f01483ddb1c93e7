"""The fused function in PyTorch alone: what the kernel must give.

It runs where there is no kernel, and for surrogates that the kernel does not know.
"""

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from spikeprune.core.neuron import charge, reset_after
from spikeprune.runtime.fuse.call import Call, Neuron, Norm


class Recomputed(torch.autograd.Function):
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
    steps = [x] * call.T if call.is_static else list(x.unflatten(0, (call.T, -1)))
    wide = torch.float64 if y.dtype == torch.float64 else torch.float32
    surrogate = n.curve
    decay, gain, offset = n.decay, n.gain, n.offset
    if leak is not None:  # linear in the leak, so value and slopes say everything
        move = leak.to(wide) - leak.detach().to(wide)
        decay, gain, offset = (a + b * move for a, b in zip((decay, gain, offset), n.slopes, strict=True))
    v = torch.full_like(steps[0], n.v_start, dtype=wide) if v_start is None else v_start.to(wide)
    spikes: list[Tensor] = []
    near = torch.zeros_like(v)
    for x_step in steps:
        h = charge(x_step.to(wide), v, decay, gain, offset)
        u = h - n.v_threshold
        s = surrogate.value(u) if n.smooth else _Step.apply(u, n)
        if call.criticality is not None:
            near += surrogate.derivative(u)
        v = reset_after(h, s.detach() if n.detach_reset else s, n.v_threshold, n.v_reset)
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
        n: Neuron = ctx.neuron
        return g * n.curve.derivative(u), None
