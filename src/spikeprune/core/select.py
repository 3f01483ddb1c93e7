"""Selection: scores and a number to keep become a mask with exactly that many True.

Ties are broken by index, in the order of the mapping and then of the flattened tensor; never by `>=`, which would
keep every weight of a filter whose score all its weights share.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from spikeprune.core.errors import InvalidValue

_SMALL = 1 << 18  # below this, one kthvalue over everything is fastest
_SAMPLE = 1 << 16


def keep_top(scores: Mapping[str, Tensor], k: int, among: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The k highest scores over all tensors together, as bool masks with exactly k True.

    Args:
        scores: name -> scores, any shapes; higher = keep. No nan.
        k: how many to keep, 0 <= k <= number of candidates.
        among: name -> bool; only these are candidates. All, if not given.
    Returns: name -> bool tensor of the same shape. Of equal scores at the cut the lower index is kept.
    Raises: InvalidValue if k is out of range or a score is nan.
    """
    if bool(torch.stack([score.amin() for score in scores.values() if score.numel()]).isnan().any()):
        raise InvalidValue("a score is not a number (nan), so weights cannot be ranked; check the loss for nan or inf")
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
        masks[name].view(-1)[tied] = True
        missing -= tied.numel()
    return masks


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
    """The best scores under a budget of cost: ranked over all tensors, as many from the top as the budget holds.

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
        masks[name].view(-1)[chosen[1, chosen[0] == number]] = True
    return masks


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
