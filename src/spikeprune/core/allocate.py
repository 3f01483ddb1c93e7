"""Allocation: a target sparsity becomes a quota of weights for every layer, summing to the target exactly."""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from spikeprune.core.errors import InvalidValue, unknown
from spikeprune.core.select import keep_top

ALLOCATIONS = ("global", "uniform", "erk", "lamp")


def kept(total: int, sparsity: float) -> int:
    """How many of `total` a sparsity keeps: floor(total * (1 - sparsity) + 1e-6)."""
    return int(total * (1 - sparsity) + 1e-6)


def names() -> list[str]:
    """Sorted names of the allocations."""
    return sorted(ALLOCATIONS)


def check(name: str) -> str:
    """The name, if it is an allocation.

    Raises: UnknownName with the nearest one.
    """
    if name not in ALLOCATIONS:
        raise unknown("allocation", name, ALLOCATIONS)
    return name


def quotas(
    name: str,
    weights: Mapping[str, Tensor],
    keep: int,
    floor: Mapping[str, int],
    room: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Weights to keep in each layer, `keep` in all, for every allocation but "global" (which ranks scores).

        uniform  the same density everywhere
        erk      density ~ (sum of the weight's dimensions) / (product of them), capped at 1
        lamp     as many as a global ranking of w^2 / (sum of the w^2 not smaller) takes from the layer

    Args:
        floor, room: name -> the least and the most that the layer may keep; room is the layer's size if not given.
    Source: Evci et al. 2020, arXiv:1911.11134 (ERK); Lee et al. 2021, arXiv:2010.07611 (LAMP).
    Raises: UnknownName; InvalidValue if the floors alone exceed `keep`.
    """
    if name == "uniform":
        total = sum(weight.numel() for weight in weights.values())
        wanted = {layer: keep * weight.numel() / total for layer, weight in weights.items()}
    elif name == "erk":
        wanted = _erk(weights, keep)
    elif name == "lamp":
        masks = keep_top({layer: lamp_score(weight) for layer, weight in weights.items()}, keep)
        wanted = {layer: float(torch.count_nonzero(mask)) for layer, mask in masks.items()}
    else:
        raise unknown("allocation with quotas", name, ("uniform", "erk", "lamp"))
    return round_to(wanted, keep, floor, room or {layer: weight.numel() for layer, weight in weights.items()})


def _erk(weights: Mapping[str, Tensor], keep: int) -> dict[str, float]:
    raw = {layer: sum(weight.shape) for layer, weight in weights.items()}  # density * numel, up to a factor
    full: set[str] = set()
    while True:
        left = keep - sum(weights[layer].numel() for layer in full)
        scale = left / max(sum(raw[layer] for layer in raw if layer not in full), 1)
        over = {layer for layer in raw if layer not in full and raw[layer] * scale > weights[layer].numel()}
        if not over:
            return {
                layer: float(weight.numel()) if layer in full else raw[layer] * scale
                for layer, weight in weights.items()
            }
        full |= over


def lamp_score(weight: Float[Tensor, "*shape"]) -> Float64[Tensor, "*shape"]:
    """w^2 over the sum of all w^2 in the layer that are not smaller (ties in index order), same shape as the weight.

    Source: Lee et al. 2021, arXiv:2010.07611, eq. 4.
    """
    square = weight.detach().reshape(-1).double() ** 2
    order = square.argsort(stable=True)
    ranked = square[order]
    tail = ranked.flip(0).cumsum(0).flip(0)
    score = torch.empty_like(square)
    score[order] = torch.where(tail > 0, ranked / tail.clamp_min(1e-300), torch.zeros_like(tail))
    return score.view(weight.shape)


def round_to(
    wanted: Mapping[str, float], keep: int, floor: Mapping[str, int], size: Mapping[str, int]
) -> dict[str, int]:
    """Whole numbers near `wanted` that sum to `keep`, within floor and size: largest remainders first, ties in order.

    Raises: InvalidValue if the floors exceed `keep`, or `keep` exceeds the sizes.
    """
    least, most = sum(floor.values()), sum(size.values())
    if not least <= keep <= most:
        raise InvalidValue(
            f"{keep} weights cannot be spread over layers that hold {most} and must keep {least}; "
            "lower the sparsity or the floor"
        )
    result = {layer: min(max(int(want), floor[layer]), size[layer]) for layer, want in wanted.items()}
    while (gap := keep - sum(result.values())) != 0:
        sign = 1 if gap > 0 else -1
        free = [layer for layer in result if (result[layer] < size[layer] if gap > 0 else result[layer] > floor[layer])]
        # Those farthest below (above) what they wanted come first; each may take its whole share of the gap.
        free.sort(key=lambda layer: sign * (result[layer] - wanted[layer]))
        share = max(abs(gap) // len(free), 1)
        for layer in free[: abs(gap)]:
            room = size[layer] - result[layer] if gap > 0 else result[layer] - floor[layer]
            result[layer] += sign * min(share, room)
    return result


def floors(weights: Mapping[str, Tensor], floor: float) -> dict[str, int]:
    """The smallest number of weights that each layer keeps. A `floor` between 0 and 1 is a share of the layer.

    Raises: InvalidValue for a negative floor.
    """
    if floor < 0:
        raise InvalidValue(f"floor must be 0 or more (a count, or a share below 1 of each layer), got {floor}")
    return {layer: least(weight.numel(), floor) for layer, weight in weights.items()}


def least(total: int, floor: float) -> int:
    """How many of `total` weights a floor keeps at least."""
    return min(total, int(floor) if floor >= 1 or floor == 0 else int(total * floor + 1e-6))
