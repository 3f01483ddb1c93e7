"""Integrate-and-fire neurons as plain functions: state in, state out. Every adapter is tested against them."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

Number = float | Tensor


def charge(x: Tensor, v: Number, decay: Number, gain: Number, shift: Number) -> Tensor:
    """v_pre = decay * v + (gain * x + shift), with shift = (1 - decay) * v_rest.

    Args:
        x: input current, [N, C, *space]. v: potential after the last reset, of the same shape or a number.
    """
    return decay * v + (gain * x + shift)


def reset_after(v_pre: Tensor, spike: Tensor, v_threshold: Number, v_reset: Number | None) -> Tensor:
    """The potential after firing: v_reset where a spike fell, or v_pre - v_threshold * spike if v_reset is None.

    Args:
        spike: of v_pre's dtype, for a gradient through it (also a smooth curve from 0 to 1), or bool where none is
            needed: then a potential that is not finite leaves no nan behind.
    """
    if v_reset is None:
        return v_pre - v_threshold * (spike.to(v_pre.dtype) if spike.dtype == torch.bool else spike)
    if spike.dtype == torch.bool:
        return torch.where(spike, v_reset, v_pre)
    return (1 - spike) * v_pre + spike * v_reset


def fire_and_reset(
    v_pre: Tensor, v_threshold: Number, v_reset: Number | None, *, strict: bool = False
) -> tuple[Tensor, Tensor]:
    """Whether each neuron fires (bool; at `>` instead of `>=` if `strict`), and the potential after it."""
    fired = v_pre > v_threshold if strict else v_pre >= v_threshold
    return fired, reset_after(v_pre, fired, v_threshold, v_reset)


def lif_step(
    x: Float[Tensor, "*shape"],
    v: Number,
    *,
    decay: Number,
    gain: Number,
    v_threshold: Number,
    v_reset: Number | None,
    v_rest: Number = 0.0,
    spike_function: Callable[[Tensor], Tensor],
    detach_reset: bool = False,
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """One time step of a leaky integrate-and-fire neuron in normal form.

        v_pre = v_rest + decay * (v - v_rest) + gain * x
        spike = H(v_pre - v_threshold)
        v     = (1 - spike) * v_pre + spike * v_reset     (hard reset)
                v_pre - v_threshold * spike               (soft reset, v_reset is None)

    Args:
        x: input current, [N, C, *space].
        v: potential after the last reset, same shape or a number.
        decay: share of the potential kept over a step; 1 for IF, 1 - 1/tau for LIF.
        gain: factor of the input; 1/tau where the input decays too.
        spike_function: of v_pre - v_threshold; its derivative is the surrogate's.
    Returns: spike, v_pre, v.
    """
    v_pre = charge(x, v, decay, gain, v_rest * (1 - decay))
    spike = spike_function(v_pre - v_threshold)
    return spike, v_pre, reset_after(v_pre, spike.detach() if detach_reset else spike, v_threshold, v_reset)


def if_step(
    x: Float[Tensor, "*shape"],
    v: Number,
    *,
    v_threshold: Number,
    v_reset: Number | None,
    spike_function: Callable[[Tensor], Tensor],
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """`lif_step` without leak: v_pre = v + x."""
    return lif_step(x, v, decay=1.0, gain=1.0, v_threshold=v_threshold, v_reset=v_reset, spike_function=spike_function)
