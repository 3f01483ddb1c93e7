"""Selection: scores and a number to keep become a mask with exactly that many True.

Ties are broken by index, in the order of the mapping and then of the flattened tensor; never by `>=`, which would
keep every weight of a filter whose score all its weights share.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from spikeprune.core.errors import InvalidValue

Cost = Callable[[Mapping[str, Tensor]], float]  # masks by name -> what is kept costs in all

_SMALL = 1 << 18  # below this, one kthvalue over everything is fastest
_SAMPLE = 1 << 16


def check_numbers(scores: Mapping[str, Tensor], what: str = "a score", where: str = "this selection") -> None:
    """Raises: InvalidValue that names the layer if a score is nan, which no ranking has a place for."""
    sums = [score.sum() for score in scores.values() if score.numel()]  # nan if one is; quicker than a look at each
    if not sums or not bool(torch.stack(sums).isnan().any()):
        return
    name = next((name for name, score in scores.items() if bool(score.isnan().any())), None)
    if name is not None:  # inf and -inf add up to nan too
        raise InvalidValue(
            f"{what} of {name!r} is not a number (nan) at {where}, so weights cannot be ranked; check the loss and the "
            "inputs for nan or inf"
        )


def keep_top(scores: Mapping[str, Tensor], k: int, among: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The k highest scores over all tensors together, as bool masks with exactly k True.

    Args:
        scores: name -> scores, any shapes; higher = keep. No nan.
        k: how many to keep, 0 <= k <= number of candidates.
        among: name -> bool; only these are candidates. All, if not given.
    Returns: name -> bool tensor of the same shape. Of equal scores at the cut the lower index is kept.
    Raises: InvalidValue if k is out of range or a score is nan.
    """
    check_numbers(scores)
    candidates = {
        name: score if among is None else torch.where(among[name], score, -torch.inf) for name, score in scores.items()
    }
    available = sum(s.numel() if among is None else int(torch.count_nonzero(among[n])) for n, s in scores.items())
    if not 0 <= k <= available:
        raise InvalidValue(f"cannot keep {k} of {available} candidates; the number must be between 0 and {available}")
    if k == 0:
        return {name: torch.zeros_like(score, dtype=torch.bool) for name, score in scores.items()}
    if k == available:
        return {
            name: torch.ones_like(score, dtype=torch.bool) if among is None else among[name].clone()
            for name, score in scores.items()
        }
    cut = kth_largest(list(candidates.values()), k)
    masks = {name: score > cut for name, score in candidates.items()}
    missing = k - sum(int(torch.count_nonzero(mask)) for mask in masks.values())
    for name, score in candidates.items():
        if missing == 0:
            break
        tied = score == cut if among is None else (score == cut) & among[name]
        tied = torch.nonzero(tied.reshape(-1))[:missing, 0]
        masks[name] = _also(masks[name], tied)
        missing -= tied.numel()
    return masks


def _also(mask: Tensor, index: Tensor) -> Tensor:
    """The mask with True at these flat indices too; in place if its memory has their order (channels_last has not)."""
    flat = mask.reshape(-1)
    flat[index] = True
    return flat.view(mask.shape)


def kth_largest(values: list[Tensor], k: int) -> Tensor:
    """The exact k-th largest value (k from 1) over a list of tensors without nan, without sorting or joining them.

    A strided sample brackets the value; one pass takes what reaches the bracket, and only what lies inside it is
    searched. If the bracket misses, which an unlucky order can make it do, everything is searched.
    """
    flat = [value.reshape(-1) for value in values]
    total = sum(value.numel() for value in flat)
    if total > _SMALL:
        stride = max(1, total // _SAMPLE)
        sample = torch.cat([value[::stride] for value in flat]).sort(descending=True).values
        place = k * sample.numel() // total
        # Six standard deviations of the sample's rank on either side, and a little more at the ends.
        margin = int(3 * sample.numel() ** 0.5) + 8
        high = sample[max(place - margin, 0)]
        # What is no candidate stands at -inf, often most of the values: never search among those.
        low = sample[min(place + margin, sample.numel() - 1)].clamp_min(torch.finfo(sample.dtype).min)
        reached = torch.cat([value[value >= low] for value in flat])
        inside = reached[reached <= high]
        above = reached.numel() - inside.numel()
        if above < k <= reached.numel():
            return _kth(inside, k - above)
    return _kth(torch.cat(flat), k)


def _kth(values: Tensor, k: int) -> Tensor:
    return values.kthvalue(values.numel() - k + 1).values


def keep_quota(
    scores: Mapping[str, Tensor], quota: Mapping[str, int], among: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """`keep_top` in every layer by itself: `quota[name]` of the scores of each tensor.

    Raises: InvalidValue as `keep_top`.
    """
    return {
        name: keep_top({name: score}, quota[name], None if among is None else {name: among[name]})[name]
        for name, score in scores.items()
    }


def keep_cost(
    scores: Mapping[str, Tensor],
    cost: Mapping[str, float | Tensor],
    budget: float,
    among: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Rank all scores together and keep as many from the top as a budget of cost allows.

    Args:
        scores: name -> scores >= 0; what a weight is worth.
        cost: name -> what one weight of the tensor costs (its multiplies, for example), > 0; a tensor broadcasts.
        budget: total cost allowed.
        among: name -> bool; only these are candidates.
    Returns: masks whose cost is at most the budget, and no further candidate in rank order would fit.
    """
    masks = {name: torch.zeros_like(score, dtype=torch.bool) for name, score in scores.items()}
    values, costs, places = [], [], []
    for number, (name, score) in enumerate(scores.items()):
        index = (
            torch.arange(score.numel(), device=score.device)
            if among is None
            else torch.nonzero(among[name].reshape(-1))[:, 0]
        )
        values.append(score.reshape(-1)[index])
        each = torch.as_tensor(cost[name], dtype=torch.float64, device=score.device).expand(score.shape)
        costs.append(each.reshape(-1)[index])
        places.append(torch.stack([torch.full_like(index, number), index]))
    order = torch.cat(values).sort(descending=True, stable=True).indices
    fits = torch.cat(costs)[order].cumsum(0) <= budget * (1 + 1e-12)
    chosen = torch.cat(places, dim=1)[:, order[fits]]
    for number, name in enumerate(scores):
        masks[name] = _also(masks[name], chosen[1, chosen[0] == number])
    return masks


def keep_under_cost(
    scores: Mapping[str, Tensor],
    cost: Cost,
    allowed: float,
    floor: Mapping[str, int],
    base: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """`keep_cost` for a cost that is no sum over what is kept, as of channels: it depends on the next layer's.

    The best of all tensors, as many from the top as the cost allows; then those further down that still fit.

    Args:
        scores: group name -> [C], higher = keep; -inf marks what may not be chosen.
        cost: of what is kept; it rises with every channel.
        allowed: the budget.
        floor: group name -> channels that it keeps whatever its scores; 0 where it is not named.
        base: group name -> bool [C], channels already kept, to which others are added.
    Returns: group name -> bool [C].
    Raises: InvalidValue if the floors alone cost more.
    """
    keep: dict[str, Tensor] = {}
    for name, score in scores.items():
        alive = torch.zeros(len(score), dtype=torch.bool) if base is None else base[name].cpu().clone()
        missing = max(min(floor.get(name, 0), len(score)) - int(alive.sum()), 0)
        best = score.cpu().masked_fill(alive, -torch.inf).argsort(descending=True, stable=True)
        alive[best[:missing]] = True
        keep[name] = alive
    if cost(keep) > allowed * (1 + 1e-9):
        raise InvalidValue(
            f"the budget of {allowed:,.0f} cannot be met: the fewest channels that no layer vanishes with already "
            f"cost {cost(keep):,.0f}; ask for less sparsity"
        )
    order = _ranking({n: s.cpu().masked_fill(keep[n], -torch.inf) for n, s in scores.items()})

    def first(count: int) -> dict[str, Tensor]:
        chosen = {name: alive.clone() for name, alive in keep.items()}
        for name, channel in order[:count]:
            chosen[name][channel] = True
        return chosen

    low, high = 0, len(order)  # cost rises with every channel, so the largest number that fits is found by halving
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if cost(first(middle)) <= allowed * (1 + 1e-9) else (low, middle - 1)
    chosen = first(low)
    misses = 0
    for name, channel in order[low:]:  # a dear channel may not fit where cheaper ones behind it do
        if misses == 64:
            break
        chosen[name][channel] = True
        if cost(chosen) > allowed * (1 + 1e-9):
            chosen[name][channel] = False
            misses += 1
    return chosen


def _ranking(scores: Mapping[str, Tensor]) -> list[tuple[str, int]]:
    names = list(scores)
    values = torch.cat([scores[n].double() for n in names])
    owner = torch.cat([torch.full((len(scores[n]),), i) for i, n in enumerate(names)])
    place = torch.cat([torch.arange(len(scores[n])) for n in names])
    order = values.argsort(descending=True, stable=True)
    order = order[values[order] > -torch.inf]
    return [(names[int(owner[i])], int(place[i])) for i in order]


def draw(scores: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """Scores whose `keep_top` is a draw without replacement in proportion to the given ones.

        log(score) + Gumbel noise;  a score of 0 is never drawn before a positive one

    The noise comes from a CPU generator, so that every device and every rank draws the same.
    Source: Kool et al. 2019, arXiv:1903.06059 (Gumbel top-k).
    """
    drawn: dict[str, Tensor] = {}
    for name, score in scores.items():
        noise = torch.rand(score.shape, generator=generator, dtype=torch.float32).clamp_(1e-20, 1 - 1e-7)
        gumbel = -torch.log(-torch.log(noise)).to(score.device)
        # Where the score is 0 only the noise is left, far below every positive score.
        drawn[name] = torch.where(score > 0, score.float().clamp_min(1e-38).log() + gumbel, gumbel - 1e6)
    return drawn


def best_of_rows(scores: Tensor, alive: Tensor) -> Tensor:
    """The alive entry with the highest score in each row, as a mask of the scores' shape."""
    rows = scores.masked_fill(~alive, -torch.inf).flatten(1)
    return torch.zeros_like(rows, dtype=torch.bool).scatter(1, rows.argmax(1, keepdim=True), True).view_as(scores)
