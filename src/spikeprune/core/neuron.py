"""Integrate-and-fire neurons as plain functions: state in, state out. Every adapter is tested against them."""

from collections.abc import Callable

from torch import Tensor

Number = float | Tensor


def lif_step(
    x: Tensor,
    v: Number,
    *,
    decay: Number,
    gain: Number,
    v_threshold: Number,
    v_reset: Number | None,
    v_rest: Number = 0.0,
    spike_function: Callable[[Tensor], Tensor],
    detach_reset: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
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
    Returns: spike, v_pre, v.
    """
    v_pre = v_rest + decay * (v - v_rest) + gain * x
    spike = spike_function(v_pre - v_threshold)
    resetting = spike.detach() if detach_reset else spike
    if v_reset is None:
        return spike, v_pre, v_pre - v_threshold * resetting
    return spike, v_pre, (1 - resetting) * v_pre + resetting * v_reset


def if_step(
    x: Tensor,
    v: Number,
    *,
    v_threshold: Number,
    v_reset: Number | None,
    spike_function: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """`lif_step` without leak: v_pre = v + x."""
    return lif_step(x, v, decay=1.0, gain=1.0, v_threshold=v_threshold, v_reset=v_reset, spike_function=spike_function)
