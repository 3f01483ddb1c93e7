"""One mask update as a pure function: scores and targets in, masks out. It knows no model and no optimizer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NotRequired, TypedDict, Unpack, final

import torch
from torch import Tensor

from spikeprune.core import nm
from spikeprune.core.allocate import quotas, round_to
from spikeprune.core.evidence import Scores
from spikeprune.core.mask import Outcome, count
from spikeprune.core.select import Cost, keep_cost, keep_quota, keep_top, keep_under_cost

Bools = Mapping[str, Tensor]
Exchange = Callable[[int, int], int]


@final
@dataclass(frozen=True)
class Target:
    """The number of units that a mask update keeps, in total and in each layer.

    Attributes:
        keep: weights to keep in all (ignored under a budget of cost).
        allocate: "global", or a quota per layer: "uniform", "erk", "lamp".
        floor: name -> the least to keep in that layer.
        cost: name -> cost of one weight (a number or a tensor that broadcasts), for a budget of cost; else None.
        budget: total cost allowed, if `cost` is given.
        pattern: (n, m) to keep at most n of m neighbouring inputs, else None.
    """

    keep: int
    allocate: str
    floor: Mapping[str, int]
    cost: Mapping[str, float | Tensor] | None = None
    budget: float = 0.0
    pattern: tuple[int, int] | None = None


class Rules(TypedDict):
    """How weights are exchanged; each is explained at `prune_and_regrow`."""

    share: float
    candidates: NotRequired[str]
    protected: NotRequired[Bools | None]
    exchange: NotRequired[Exchange | None]
    growth: NotRequired[Mapping[str, float] | None]


def prune_and_regrow(
    scores: Scores,
    regrow_scores: Scores,
    alive: Bools,
    weights: Mapping[str, Tensor],
    target: Target,
    *,
    share: float,
    candidates: str = "all",
    protected: Bools | None = None,
    exchange: Exchange | None = None,
    growth: Mapping[str, float] | None = None,
) -> Outcome:
    """Cut to the target less the regrow share, then bring back as many, so that the target is met exactly.

    Of the weights kept in the layers that may regrow, `share` (rounded down) are regrown from dead ones. A dead
    weight is never revived by the cut, so where fewer are alive than the target keeps, regrowth fills the gap.

    Args:
        scores: name -> what to keep; every layer.
        regrow_scores: name -> what to bring back; only the layers that may regrow.
        alive: the masks before this round.
        weights: name -> weights, for their shapes and for LAMP.
        share: of the weights kept in the regrowing layers, the share that is regrown.
        candidates: "all" dead weights, or "new": those cut in this round.
        protected: name -> weights that may not be cut in this round (grace).
        exchange: (kept, alive) -> how many of a layer's weights survive the cut; the layer then gets back what it
            lost. Not given: the share is taken and given back as the allocation says. A budget of cost ignores it.
        growth: name -> what part of all that is regrown the layer gets, if not what it lost.
    """
    if protected is not None:
        scores = {n: s.masked_fill(protected[n] & alive[n], torch.inf) for n, s in scores.items()}
    if target.pattern is not None:
        lift = nm.span(scores)
        scores = {n: nm.prefer_group(s, alive[n], *target.pattern, lift) for n, s in scores.items()}
    reference = _cut(scores, alive, weights, target, 0.0, frozenset())
    growing = frozenset(regrow_scores) if share > 0 else frozenset[str]()
    if not growing:
        none = {n: torch.zeros_like(m) for n, m in reference.items()}
        return Outcome(reference, dict(reference), none, reference)
    if target.cost is not None:
        exchange = None
    if exchange is None:
        survivors = _cut(scores, alive, weights, target, share, growing, reference)
    else:
        kept = {n: exchange(count({n: reference[n]}), count({n: alive[n]})) for n in growing}
        survivors = {**reference, **keep_quota({n: scores[n] for n in growing}, kept, alive)}
    dead = {n: ~survivors[n] & alive[n] if candidates == "new" else ~survivors[n] for n in regrow_scores}
    if target.pattern is not None:
        # Groups that have fewer than n are filled first, so that at the final sparsity each has n.
        lift = nm.span(regrow_scores)
        room = {n: nm.room(survivors[n], regrow_scores[n], dead[n], *target.pattern) for n in dead}
        regrow_scores = {n: torch.where(room[n], s.double() + lift, s.double()) for n, s in regrow_scores.items()}
    if exchange is None:
        regrown = _grow(regrow_scores, dead, survivors, reference, target)
    else:
        regrown = _grow_layers(regrow_scores, dead, survivors, reference, target.keep, growth)
    regrown = {n: regrown[n] if n in regrown else torch.zeros_like(m) for n, m in survivors.items()}
    return Outcome({n: survivors[n] | regrown[n] for n in survivors}, survivors, regrown, reference)


def _cut(
    scores: Scores,
    alive: Bools,
    weights: Mapping[str, Tensor],
    target: Target,
    share: float,
    growing: frozenset[str],
    reference: Bools | None = None,
) -> dict[str, Tensor]:
    """The mask of the cut: layers that do not regrow keep the target, the others keep (1 - share) of it."""
    fixed = {n: reference[n] for n in scores if reference is not None and n not in growing}
    free = {n: s for n, s in scores.items() if n not in fixed}
    among = {n: alive[n] for n in free}
    floor = {n: target.floor[n] for n in free}
    if target.cost is not None:
        budget = target.budget if reference is None else _cost(reference, target.cost, growing) * (1 - share)
        least = {n: min(floor[n], count({n: m})) for n, m in among.items()}
        worth = {n: _worth(s, target.cost[n]) for n, s in free.items()}
        held = keep_quota(worth, least, among)
        worth = {n: w.masked_fill(held[n], torch.inf) for n, w in worth.items()}
        kept = keep_cost(worth, {n: target.cost[n] for n in free}, budget, among)
    elif target.allocate == "global":
        if reference is None:
            keep = min(target.keep, count(among))
        else:
            base = count({n: reference[n] for n in free})
            keep = base - int(share * base)
        kept = _keep_floor(free, keep, among, floor)
    else:
        if reference is None:
            room = {n: count({n: m}) for n, m in among.items()}
            keep = min(target.keep, sum(room.values()))
            quota = quotas(target.allocate, weights, keep, _affordable(floor, room, keep), room)
        else:
            base = {n: count({n: reference[n]}) for n in free}
            quota = {n: count - int(share * count) for n, count in base.items()}
        kept = keep_quota(free, quota, among)
    return {n: fixed[n] if n in fixed else kept[n] for n in scores}


def _affordable(floor: Mapping[str, int], room: Mapping[str, int], keep: int) -> dict[str, int]:
    """The floors within what is alive; shrunk in proportion where `keep` is too little for all of them."""
    least = {n: min(floor[n], room[n]) for n in room}
    total = sum(least.values())
    if total <= keep:
        return least
    return round_to({n: keep * f / total for n, f in least.items()}, keep, dict.fromkeys(least, 0), least)


def _keep_floor(scores: Scores, keep: int, among: Bools, floor: Mapping[str, int]) -> dict[str, Tensor]:
    """`keep_top`, but no layer falls below its floor; the others give way, in the same order of scores."""
    least = _affordable(floor, {n: count({n: among[n]}) for n in scores}, keep)
    held: dict[str, Tensor] = {}
    while True:
        rest = {n: s for n, s in scores.items() if n not in held}
        kept = keep_top(rest, keep - sum(least[n] for n in held), {n: among[n] for n in rest}) if rest else {}
        short = [n for n, m in kept.items() if count({n: m}) < least[n]]
        if not short:
            return {n: held[n] if n in held else kept[n] for n in scores}
        for n in short:
            held[n] = keep_top({n: scores[n]}, least[n], {n: among[n]})[n]


def _grow(
    scores: Scores, dead: Bools, survivors: Bools, reference: Bools, target: Target
) -> dict[str, Tensor]:  # fmt: skip
    """Brings back as much as the cut left open, per layer or over all layers as the allocation says."""
    if target.cost is not None:
        cost = {n: target.cost[n] for n in scores}
        left = _cost(reference, cost, frozenset(scores)) - _cost(survivors, cost, frozenset(scores))
        return keep_cost({n: _worth(s, cost[n]) for n, s in scores.items()}, cost, left, dead)
    if target.allocate == "global":
        missing = target.keep - count(survivors)
        return keep_top(scores, min(missing, count(dead)), dead)
    return _grow_layers(scores, dead, survivors, reference, target.keep, None)


def _grow_layers(
    scores: Scores, dead: Bools, survivors: Bools, reference: Bools, keep: int, growth: Mapping[str, float] | None
) -> dict[str, Tensor]:
    """Brings back in each layer what it lost, or its part of the whole; what does not fit goes to the others."""
    room = {n: count({n: dead[n]}) for n in scores}
    missing = min(keep - count(survivors), sum(room.values()))
    wanted = {
        n: float(count({n: reference[n]}) - count({n: survivors[n]})) if growth is None else growth[n] * missing
        for n in scores
    }
    return keep_quota(scores, round_to(wanted, missing, dict.fromkeys(scores, 0), room), dead)


def _worth(scores: Tensor, cost: float | Tensor) -> Tensor:
    """Rank under a budget of cost: squared score per cost, the greedy rule for keeping most of the squared sum."""
    infinite = torch.isinf(scores)
    return torch.where(infinite, scores, scores.double() ** 2 * torch.sign(scores) / cost)


def _cost(masks: Bools, cost: Mapping[str, float | Tensor], layers: frozenset[str]) -> float:
    return sum(float((masks[n].double() * cost[n]).sum()) for n in masks if n in layers)


def channel_round(
    scores: Mapping[str, Tensor],
    regrow_scores: Mapping[str, Tensor],
    alive: Bools,
    target: Target,
    *,
    cost: Cost | None = None,
    **rules: Unpack[Rules],
) -> Outcome:
    """One round over channels: cut to the target less the regrow share, then bring back as much.

    Without `cost` the target counts channels, and the round is `prune_and_regrow` on one vector per group. With it,
    `target.budget` is the cost allowed: `1 - share` of it is filled by `scores`, the rest by `regrow_scores`.

    Args:
        scores: group name -> [C], what to keep.
        regrow_scores: group name -> [C], what to bring back; groups that may not regrow are left out.
        alive: group name -> bool [C], before the round.
        rules: as for `prune_and_regrow`; a budget of cost knows no quota per layer, and ignores them.
    """
    if cost is None:
        return prune_and_regrow(scores, regrow_scores, alive, scores, target, **rules)
    share, protected = rules["share"], rules.get("protected")
    if protected is not None:
        scores = {n: s.masked_fill(protected[n] & alive[n], torch.inf) for n, s in scores.items()}
    floor = target.floor
    able = {name: score.masked_fill(~alive[name], -torch.inf) for name, score in scores.items()}
    reference = _like(keep_under_cost(able, cost, target.budget, floor), scores)
    growing = regrow_scores if share > 0 else {}
    if not growing:
        none = {name: torch.zeros_like(mask) for name, mask in reference.items()}
        return Outcome(reference, dict(reference), none, reference)
    survivors = _like(keep_under_cost(able, cost, target.budget * (1 - share), floor), scores)
    wanted: dict[str, Tensor] = {}
    for name, score in scores.items():
        barred = survivors[name] | ~alive[name] if rules.get("candidates") == "new" else survivors[name]
        worth = growing.get(name, torch.full_like(score, -torch.inf))
        wanted[name] = worth.masked_fill(barred, -torch.inf)
    kept_all = _like(keep_under_cost(wanted, cost, target.budget, {}, base=survivors), scores)
    regrown = {name: mask & ~survivors[name] for name, mask in kept_all.items()}
    return Outcome(kept_all, survivors, regrown, reference)


def _like(masks: Mapping[str, Tensor], scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: mask.to(scores[name].device) for name, mask in masks.items()}
