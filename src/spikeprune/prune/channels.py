"""Pruning by channels: what a channel weighs, what it costs, which are kept, and the masks that follow.

With `pattern="channel"` and `"gate"` the rules of a round are those for weights (`pruner/update.py`), applied to one
vector per group, [C], in place of one tensor per layer. This file makes those vectors and turns the answer into masks.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from spikeprune.core.allocate import kept
from spikeprune.core.errors import InvalidValue
from spikeprune.model.groups import ChannelGroup, channel_groups
from spikeprune.model.pairing import Pairing
from spikeprune.model.trace import Graph
from spikeprune.prune.update import Bools, Outcome, Target, prune_and_regrow

Cost = Callable[[Mapping[str, Tensor]], float]


def channel_masks(groups: Sequence[ChannelGroup], keep: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Masks of parameters from masks of channels.

    A cut channel takes its filters, its biases and its normalisation's scale and shift along: with a shift left it
    would go on firing. Columns of the layers that read it stay: they see zeros, and are as they were if it returns.

    Args:
        groups: the channel groups.
        keep: group name -> bool [C], True = alive.
        model: whose parameters the groups name.
    Returns: parameter name -> bool tensor of its shape.
    """
    masks: dict[str, Tensor] = {}
    parameters = dict(model.named_parameters())
    for group in groups:
        for part in group.slices:
            parameter = parameters.get(part.tensor)
            if part.role not in ("out", "norm") or parameter is None:
                continue
            mask = masks.setdefault(part.tensor, torch.ones_like(parameter, dtype=torch.bool))
            alive = keep[group.name].cpu()[part.channels.clamp_min(0)] | (part.channels < 0)
            mask.index_fill_(part.dim, torch.nonzero(~alive).flatten().to(mask.device), False)
    return masks


def per_channel(group: ChannelGroup, tensors: Mapping[str, Tensor], *roles: str) -> Tensor | None:
    """Everything that `tensors` hold of each channel, side by side: [C, entries]; None if they hold nothing.

    With role "norm" only the scales are taken: the shift does not tell how much a channel matters.
    """
    rows: list[Tensor] = []
    for part in group.slices:
        tensor = tensors.get(part.tensor)
        if part.role not in roles or tensor is None or (tensor.dim() == 1 and part.tensor.endswith(".bias")):
            continue
        # A dimension may hold a channel several times (behind a flatten) or not at all (behind a cat).
        place = part.channels.to(tensor.device)
        flat = tensor.movedim(part.dim, 0).flatten(1) if tensor.dim() > 1 else tensor.unsqueeze(1)
        order = torch.argsort(place[place >= 0], stable=True)
        rows.append(flat[place >= 0][order].reshape(group.channels, -1))
    return torch.cat(rows, 1) if rows else None


def bn_scale(group: ChannelGroup, tensors: Mapping[str, Tensor]) -> Tensor | None:
    """|gamma| of each channel, the mean over the group's normalisations; None if it has none. [C]

    Source: Liu et al. 2017, arXiv:1708.06519 (network slimming).
    """
    scales = per_channel(group, tensors, "norm")
    return None if scales is None else scales.abs().mean(1)


def weight_norm(group: ChannelGroup, tensors: Mapping[str, Tensor]) -> Tensor | None:
    """Root mean square of each channel's filter weights, over all layers that write it; None if none does. [C]

    The mean in place of the sum lets layers of different fan-in be ranked together.
    Source: Li et al. 2017, arXiv:1608.08710, with the Euclidean norm.
    """
    filters = per_channel(group, tensors, "out")
    return None if filters is None else filters.square().mean(1).sqrt()


def slope(group: ChannelGroup, tensors: Mapping[str, Tensor], grads: Mapping[str, Tensor]) -> Tensor | None:
    """Sum of w * dL/dw over the channel's normalisation scales, or its filters where it has none. [C]

    The derivative of the loss by a gate on the channel; its square is the Taylor score.
    Source: Molchanov et al. 2019, arXiv:1906.10771, eq. 8 (joint, gate on BatchNorm).
    """
    for role in ("norm", "out"):
        weights, slopes = per_channel(group, tensors, role), per_channel(group, grads, role)
        if weights is not None and slopes is not None:
            return (weights * slopes).sum(1)
    return None


def check_budget(groups: Sequence[ChannelGroup], sparsity: float, floor: Mapping[str, int]) -> int:
    """How many channels a sparsity keeps: floor(N * (1 - sparsity) + 1e-6).

    Args: floor: group name -> the least that it keeps.
    Raises: InvalidValue if that is less than all floors together.
    """
    total = sum(group.channels for group in groups)
    keep = kept(total, sparsity)
    least = sum(min(floor[group.name], group.channels) for group in groups)
    if keep < least:
        raise InvalidValue(
            f"a sparsity of {sparsity:g} keeps {keep} of {total} channels, fewer than the {least} that the "
            f"{len(groups)} groups need, so a layer would vanish; the highest possible is {1 - least / total:.4f}"
        )
    return keep


def channel_round(
    scores: Mapping[str, Tensor],
    regrow_scores: Mapping[str, Tensor],
    alive: Bools,
    target: Target,
    *,
    share: float,
    candidates: str = "all",
    cost: Cost | None = None,
    protected: Bools | None = None,
    **rules: Any,
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
        return prune_and_regrow(
            scores, regrow_scores, alive, scores, target,
            share=share, candidates=candidates, protected=protected, **rules,
        )  # fmt: skip
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
        barred = survivors[name] | ~alive[name] if candidates == "new" else survivors[name]
        worth = growing.get(name, torch.full_like(score, -torch.inf))
        wanted[name] = worth.masked_fill(barred, -torch.inf)
    kept_all = _like(keep_under_cost(wanted, cost, target.budget, {}, base=survivors), scores)
    regrown = {name: mask & ~survivors[name] for name, mask in kept_all.items()}
    return Outcome(kept_all, survivors, regrown, reference)


def _like(masks: Mapping[str, Tensor], scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: mask.to(scores[name].device) for name, mask in masks.items()}


def authors_channels(
    scales: Mapping[str, Tensor], regrow_scores: Mapping[str, Tensor], percent: float, growth: float
) -> Outcome:
    """The authors' structured rule, ties and off-by-one included.

        i = int(N * percent);  G = int((N - i) * growth);  t = sorted |gamma|[i + G]
        survivors = |gamma| > t;  regrown = the G highest scores among the others, and all that tie with the last

    It keeps N - i - 1 channels unless scores tie, and no layer is safe from losing all of its channels.

    Args:
        scales: group name -> |gamma|, [C].
        regrow_scores: group name -> criticality, [C].
        percent: share of the channels to cut.
        growth: share of the channels kept to bring back; 0.05 in the paper's commands.
    Source: read in the public code of arXiv:2311.16141 (commit ee3170e, channel pruning).
    """
    ordered = torch.cat([score.reshape(-1) for score in scales.values()]).sort().values
    index = int(len(ordered) * percent)
    grown = int((len(ordered) - index) * growth)
    reference = {name: scale > ordered[index] for name, scale in scales.items()}
    survivors = {name: scale > ordered[index + grown] for name, scale in scales.items()}
    regrown = {name: torch.zeros_like(mask) for name, mask in survivors.items()}
    if grown:
        dead = {name: regrow_scores[name].masked_fill(mask, -torch.inf) for name, mask in survivors.items()}
        cut = torch.cat(list(dead.values())).sort(descending=True).values[grown - 1]
        regrown = {name: (score >= cut) & ~survivors[name] for name, score in dead.items()}
    return Outcome({n: survivors[n] | regrown[n] for n in survivors}, survivors, regrown, reference)


class ChannelSpace:
    """The channels of a model as a round sees them: one vector per group; the parameters follow its answer.

    Channels that come back have the weights, scale and shift they had when they were cut.

    Attributes:
        groups: those whose layers may all be pruned.
        alive: group name -> bool [C].
        total: number of prunable channels.
    """

    def __init__(
        self, graph: Graph, model: nn.Module, pattern: Literal["channel", "gate"], weights: Collection[str]
    ) -> None:
        """`weights`: names of the weights that may be pruned; a group with another one among its layers stays whole.

        Raises: InvalidValue as `channel_groups`, and if no group is left.
        """
        self.model = model
        found = channel_groups(graph, model, pattern)
        parameters = dict(model.named_parameters())
        filters = {g.name: [n for n in g.tensors("out") if parameters[n].dim() > 1] for g in found}
        self.groups = [g for g in found if all(name in weights for name in filters[g.name])]
        if not self.groups:
            raise InvalidValue(f"pattern={pattern!r} finds no group of channels that may be cut; widen include=")
        self.alive = {g.name: torch.ones(g.channels, dtype=torch.bool) for g in self.groups}
        self.total = sum(g.channels for g in self.groups)
        self._stash: dict[str, Tensor] = {}  # what cut entries were, by parameter

    def masks(self, alive: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Parameter name -> bool, of `alive` or of the present channels."""
        return channel_masks(self.groups, self.alive if alive is None else alive, self.model)

    def weights(self, values: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Group name -> what stands for its channels' weights, [C]: the BN scale; where there is none, the norm.

        Args: values: of the parameters; the present ones, and of cut channels those before the cut, if not given.
        """
        tensors = self.values() if values is None else values
        sizes: dict[str, Tensor] = {}
        for group in self.groups:
            scale = bn_scale(group, tensors)
            found = weight_norm(group, tensors) if scale is None else scale
            sizes[group.name] = torch.zeros(group.channels) if found is None else found.cpu()
        return sizes

    def values(self) -> dict[str, Tensor]:
        """The parameters, with cut channels as they were: a zero would say nothing of them."""
        masks = self.masks()
        return {
            name: torch.where(masks[name], p.detach(), self._stash[name]) if name in self._stash else p.detach()
            for name, p in self.model.named_parameters()
        }

    def statistics(self, pairs: Mapping[str, Pairing], found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Group name -> [C], from statistics by weight: those of the first neuron that fires for the channels."""
        result: dict[str, Tensor] = {}
        for group in self.groups:
            weight = next(
                (n for neuron in group.neurons for n, p in pairs.items() if p.neuron == neuron and n in found), None
            )
            if weight is None:
                continue
            own = [s.channels for s in group.slices if s.tensor == weight and s.role == "out"]
            place = own[0] if own else torch.arange(group.channels)
            if len(place) == len(found[weight]) and bool((place >= 0).all()):
                result[group.name] = torch.zeros(group.channels).index_copy(0, place, found[weight].float().cpu())
        return result

    @torch.no_grad()
    def apply(self, outcome: Outcome) -> dict[str, Tensor]:
        """Cuts and brings back; keeps what was cut. Returns: the masks of the parameters afterwards."""
        before, after = self.masks(), self.masks(outcome.alive)
        for name, mask in after.items():
            parameter = self.model.get_parameter(name)
            stash = self._stash.setdefault(name, torch.zeros_like(parameter))
            stash.copy_(torch.where(before[name] & ~mask, parameter, stash))
            parameter.copy_(torch.where(mask & ~before[name], stash, parameter) * mask)
        self.alive = {name: mask.cpu() for name, mask in outcome.alive.items()}
        return after

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Which channels are alive, and what the others were."""
        return {"alive": dict(self.alive), "stash": {n: t.clone() for n, t in self._stash.items()}}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Takes up what `state_dict` gave.

        Raises: InvalidValue if it belongs to other groups.
        """
        shapes = {name: mask.shape for name, mask in state["alive"].items()}
        if shapes != {name: mask.shape for name, mask in self.alive.items()}:
            raise InvalidValue("the saved channels are those of another network or pattern; make the Pruner alike")
        self.alive = {name: mask.cpu().bool() for name, mask in state["alive"].items()}
        self._stash = {n: t.to(self.model.get_parameter(n), copy=True) for n, t in state["stash"].items()}


def network_cost(
    budget: str,
    groups: Sequence[ChannelGroup],
    model: nn.Module,
    graph: Graph,
    rates: Mapping[str, Tensor] | None = None,
) -> Cost:
    """A function from masks of channels to the cost of the network that is left.

        parameters  every entry of every parameter that stays
        macs        multiplies of every Conv and Linear, over the traced forward
        synops      macs times the share of non-zero inputs, per input channel

    The cost of a layer is the product of what stays of its inputs and of its outputs, so it is no sum over channels.

    Args:
        budget: "parameters", "macs" or "synops".
        rates: weight name -> share of non-zero inputs, [in_channels], for "synops".
    """
    table = {name: p.shape for name, p in model.named_parameters()}
    owners: dict[str, list[tuple[int, str, Tensor]]] = {}
    for group in groups:
        for part in group.slices:
            if part.tensor in table:
                owners.setdefault(part.tensor, []).append((part.dim, group.name, part.channels))
    positions: dict[str, float] = dict.fromkeys(table, 1.0) if budget == "parameters" else {}
    for node in graph.nodes if budget != "parameters" else ():
        if node.weight is not None:
            made = torch.Size(node.shape).numel() / table[node.weight][0]
            positions[node.weight] = positions.get(node.weight, 0.0) + made

    def cost(keep: Mapping[str, Tensor]) -> float:
        total = 0.0
        for name, each in positions.items():
            sizes = [torch.ones(size, dtype=torch.float64) for size in table[name]]
            if budget == "synops" and rates is not None:
                sizes[1] = rates[name].double().cpu().clone()
            for dim, group, channels in owners.get(name, []):
                alive = keep[group].cpu()[channels.clamp_min(0)] | (channels < 0)
                sizes[dim] = sizes[dim] * alive
            volume = each
            for size in sizes:
                volume *= float(size.sum())
            total += volume
        return total

    return cost


def keep_under_cost(
    scores: Mapping[str, Tensor],
    cost: Cost,
    allowed: float,
    floor: Mapping[str, int],
    base: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """The best channels, ranked over all groups, as many from the top as the cost allows; then what still fits.

    Args:
        scores: group name -> [C], higher = keep; -inf marks what may not be chosen.
        cost: as `network_cost` makes it.
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
