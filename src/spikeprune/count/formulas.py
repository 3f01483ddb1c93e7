"""The cost of a network: operations, energy, stored size and firing rates as functions of tensors.

Shapes: N batch (or any number of frames), C channels, *space positions.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Int64, Shaped
from torch import Tensor

AC_PJ = 0.9
"""Energy of one accumulate: 32-bit floating point at 45 nm (Horowitz, ISSCC 2014)."""
MAC_PJ = 4.6
"""Energy of one multiply-accumulate, 3.7 for the product and 0.9 for the sum; same source."""


def is_spiking(x: Tensor) -> bool:
    """Whether x holds nothing but -1, 0 and 1, so that its products with weights need no multiplier."""
    return bool(((x == 0) | (x.abs() == 1)).all())


def linear_fan_out(alive: Bool[Tensor, "O I"]) -> Int64[Tensor, "I"]:
    """Alive weights that leave each input of a Linear layer; [in_features], int64.

    Args:
        alive: mask of the weight, [out_features, in_features].
    """
    return alive.sum(0)


def fan_out(apply: Callable[[Tensor], Tensor], shape: tuple[int, ...], device: torch.device) -> Tensor:
    """How often each input value is used by a linear map whose weights are 0 or 1; int64.

    An input's uses are the column sum of the map, which is the gradient of the sum of all outputs. So borders,
    strides, dilation, groups and every kind of padding come out right without a rule for each.

    Args:
        apply: the map with weights of 0 and 1 and no bias, such as a convolution with its mask for a kernel.
        shape: shape of one input, without batch.
    """
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        x = torch.zeros(1, *shape, device=device, requires_grad=True)
        (uses,) = torch.autograd.grad(apply(x).sum(), x)
    # Rounded, because a convolution by fast transforms gives whole numbers only nearly.
    return uses[0].round().long()


def operations(x: Shaped[Tensor, "N *input"], fan_out: Int64[Tensor, "*input"]) -> int:
    """Pairs of a non-zero input and a weight that it meets, summed over the first dimension.

        sum_n sum_i [x[n, i] != 0] * fan_out[i]

    Args:
        x: inputs of a layer, [N, C, *space] or [N, features].
        fan_out: uses of each input, [C, *space] or [features], int64.
    """
    return int(((x != 0).sum(0) * fan_out).sum())


def energy_pj(accumulates: float, multiply_accumulates: float) -> float:
    """0.9 pJ per accumulate and 4.6 pJ per multiply-accumulate; memory, routing and neuron updates are left out.

    Source: Horowitz 2014, "Computing's energy problem", ISSCC; 45 nm, 32-bit floating point.
    """
    return AC_PJ * accumulates + MAC_PJ * multiply_accumulates


def stored_bytes(values: Tensor, alive: Tensor | None = None) -> int:
    """Bytes of a parameter on disk. With `alive`: a mask of one bit a value, and the alive values only."""
    if alive is None:
        return values.numel() * values.element_size()
    return (values.numel() + 7) // 8 + int(alive.sum()) * values.element_size()
