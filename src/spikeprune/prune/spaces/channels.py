"""Whole channels as what is pruned one by one: one vector per group, [C], in place of one tensor per layer.

With `pattern="channel"` and `"gate"` the rules of a mask update are those for weights (`prune/update.py`), applied to
these vectors. This file makes them and turns the answer into masks of parameters.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, Unpack, cast, final

import torch
from torch import Tensor, nn

from spikeprune.core import allocate as allocation
from spikeprune.core.errors import InvalidValue, MissingEvidence
from spikeprune.core.evidence import Scores
from spikeprune.core.mask import Outcome, unpack
from spikeprune.core.select import Cost, keep_under_cost
from spikeprune.count.costs import network_cost
from spikeprune.methods.shared.authors import authors_channels
from spikeprune.model.channel_values import bn_scale, channel_masks, slope, weight_norm
from spikeprune.model.groups import ChannelGroup, channel_groups
from spikeprune.model.pairing import Pairing
from spikeprune.model.trace import Graph
from spikeprune.prune.evidence import Observer
from spikeprune.prune.spaces.space import Parts, Space, Tensors
from spikeprune.prune.update import Bools, Rules, Target, prune_and_regrow


def check_budget(groups: Sequence[ChannelGroup], sparsity: float, floor: Mapping[str, int]) -> int:
    """How many channels a sparsity keeps: floor(N * (1 - sparsity) + 1e-6).

    Args: floor: group name -> the least that it keeps.
    Raises: InvalidValue if that is less than all floors together.
    """
    total = sum(group.channels for group in groups)
    keep = allocation.kept(total, sparsity)
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

    def take(self, masks: Tensors) -> None:
        """Takes the channels that masks of parameters keep.

        Raises: InvalidValue if the masks cut single weights, or more than whole channels of these groups.
        """
        for group in self.groups:
            for part in group.slices:
                if part.role == "out" and part.tensor in masks and masks[part.tensor].dim() > 1:
                    rows = masks[part.tensor].cpu().movedim(part.dim, 0).flatten(1).any(1)
                    self.alive[group.name][part.channels[rows.nonzero().flatten()]] = True
                    dead = part.channels[(~rows).nonzero().flatten()]
                    self.alive[group.name][dead[dead >= 0]] = False
        follow = self.masks()
        wrong = next((n for n, m in masks.items() if not torch.equal(follow.get(n, torch.ones_like(m)), m)), None)
        if wrong is not None:
            raise InvalidValue(
                f"the given mask of {wrong!r} does not cut whole channels of the groups that belong together; prune "
                "single weights (pattern='weight'), or give the masks of a Pruner with this pattern"
            )

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


@final
class Channels(Space):
    """Whole channels: one vector per group. They are known once the model has been traced.

    A channel that comes back has the weights, scale and shift that it had when it was cut.
    """

    def __init__(self, parts: Parts, pattern: str) -> None:
        self.parts = parts
        self.pattern: Literal["channel", "gate"] = cast(Literal["channel", "gate"], pattern)
        self._space: ChannelSpace | None = None
        self._least: dict[str, int] = {}
        self._rates: dict[str, Tensor] = {}  # share of non-zero inputs, of cut channels as it was before
        self._cost: Cost | None = None
        self._given: Tensors | None = None  # masks that came before the channels were known
        self._saved: Mapping[str, Any] | None = None  # a state that came before the channels were known
        parts.upkeep.set({})

    @property
    def known(self) -> bool:
        """Whether the model has been traced."""
        return self._space is not None

    @property
    def total(self) -> int:
        """Number of channels in all groups."""
        return 0 if self._space is None else self._space.total

    @property
    def space(self) -> ChannelSpace:
        """The channels.

        Raises: MissingEvidence if no forward has shown them yet.
        """
        if self._space is None:
            raise MissingEvidence(
                f"pattern={self.pattern!r} must see one forward to know which channels belong together; "
                "pass data=, or call the model that was given to the Pruner"
            )
        return self._space

    @property
    def alive(self) -> dict[str, Tensor]:
        return {} if self._space is None else self._space.alive

    @property
    def tracked(self) -> Mapping[str, nn.Parameter]:
        return dict(self.parts.model.named_parameters())

    def learn(self, graph: Graph, most: float) -> None:
        """Finds the groups.

        Raises: InvalidValue if channels of this model cannot be cut, or no network meets the budget.
        """
        space = ChannelSpace(graph, self.parts.model, self.pattern, self.parts.parameters)
        self._least = allocation.floors(space.weights(), self.parts.floor)
        if self.parts.budget == "weights":
            check_budget(space.groups, most, self._least)
        else:
            self._cost = network_cost(self.parts.budget, space.groups, self.parts.model, graph, self._rates)
            if self.parts.budget != "synops":
                self._check_cost(space, most)
        if self._given is not None:
            space.take(self._given)
            self._given = None
        self._space = space
        self.parts.upkeep.set(space.masks())
        if self._saved is not None:
            self.load_state_dict(self._saved)

    def _check_cost(self, space: ChannelSpace, most: float) -> None:
        least = {n: torch.arange(len(m)) < self._least[n] for n, m in space.alive.items()}
        assert self._cost is not None
        lowest, whole = self._cost(least), self._cost({n: torch.ones_like(m) for n, m in space.alive.items()})
        if lowest > whole * (1 - most):
            raise InvalidValue(
                f"a sparsity of {most:g} in {self.parts.budget} cannot be met without a layer vanishing; "
                f"the highest possible is {1 - lowest / whole:.4f}"
            )

    def weights(self, values: Tensors | None = None) -> dict[str, Tensor]:
        return self.space.weights(values)  # on the CPU, like all that a round over channels needs: they are few

    def grads(self, grads: Tensors, values: Tensors) -> dict[str, Tensor]:
        sizes, result = self.weights(values), dict[str, Tensor]()
        for group in self.space.groups:
            found = slope(group, values, grads)
            if found is not None:  # (sum of w * dL/dw) / size: the gradient by the channel's size
                size, found = sizes[group.name], found.cpu()
                result[group.name] = torch.where(size > 0, found / size.clamp_min(1e-30), torch.zeros_like(found))
        return result

    def facts(self) -> dict[str, dict[str, Tensor]]:
        values = self.space.values()
        kinds = {"scale": bn_scale, "norm": weight_norm}
        found = {kind: {g.name: of(g, values) for g in self.space.groups} for kind, of in kinds.items()}
        return {kind: {n: v.cpu() for n, v in each.items() if v is not None} for kind, each in found.items()}

    def statistics(self, found: Tensors, observer: Observer) -> Tensors:
        return self.space.statistics(observer.pairs or {}, found)

    def may_regrow(self, observer: Observer) -> set[str]:
        names = {n: torch.zeros(len(p)) for n, p in self.parts.parameters.items() if observer.feeds_neuron(n)}
        return set(self.statistics(names, observer))

    def target(self, sparsity: float, rates: Tensors, observer: Observer) -> Target:
        keep = allocation.kept(self.space.total, sparsity)
        if self._cost is None:
            return Target(keep, self.parts.allocate, self._least)
        if self.parts.budget == "synops":
            self._remember(rates)
        whole = self._cost({n: torch.ones_like(m) for n, m in self.alive.items()})
        return Target(keep, self.parts.allocate, self._least, budget=whole * (1 - sparsity))

    def _remember(self, rates: Tensors) -> None:
        """Of a cut channel no input is seen any more; what it would cost is what it cost when it was alive."""
        seen = {n: rate.double().cpu() for n, rate in rates.items()}
        for group in self.space.groups:
            for part in group.slices:
                if part.role == "in" and part.tensor in seen and part.tensor in self._rates:
                    cut = ~self.alive[group.name][part.channels.clamp_min(0)] & (part.channels >= 0)
                    seen[part.tensor] = torch.where(cut, self._rates[part.tensor], seen[part.tensor])
        if not seen:
            raise MissingEvidence("budget='synops' needs firing rates; pass data=, or attach before the forward")
        self._rates.update(seen)

    def select(
        self, scores: Scores, regrow_scores: Scores, alive: Bools, target: Target, **rules: Unpack[Rules]
    ) -> Outcome:
        return channel_round(scores, regrow_scores, alive, target, cost=self._cost, **rules)

    def authors(self, regrow_scores: Scores, sparsity: float, share: float) -> Outcome:
        return authors_channels(self.weights(), regrow_scores, sparsity, share)

    def masks(self, units: Bools) -> dict[str, Tensor]:
        return self.space.masks(units)

    def apply(self, outcome: Outcome, start_value: str, clean: bool) -> None:
        before = self.alive
        masks = self.space.apply(outcome)
        if clean:
            self.parts.upkeep.hold_state(self.masks({n: m & before[n] for n, m in outcome.alive.items()}))
        self.parts.upkeep.set(masks)

    def state_dict(self) -> dict[str, Any]:
        if self._space is None:
            return dict(self._saved or {"alive": {}, "stash": {}, "rates": {}})
        return {**self._space.state_dict(), "rates": dict(self._rates)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if self._space is None:
            self._saved = state if state["alive"] else None
            return
        # A state from before the first forward holds nothing: all channels were alive.
        alive = state["alive"] or {n: torch.ones_like(m) for n, m in self.alive.items()}
        self._space.load_state_dict({"alive": alive, "stash": state["stash"]})
        self._rates.update(state["rates"])
        self._saved = None
        self.parts.upkeep.set(self._space.masks())

    def unpacked(self, bits: Tensors, state: Mapping[str, Any]) -> dict[str, Tensor]:
        return {n: unpack(b.cpu(), tuple(state["alive"][n].shape)) for n, b in bits.items()}

    def hold(self, masks: Tensors) -> None:
        self._given = dict(masks) if self._space is None else None
        self.parts.upkeep.set(dict(masks))

    def held(self, bits: Tensors) -> dict[str, Tensor]:
        named = {n: self.parts.model.get_parameter(n) for n in bits}
        return {n: unpack(bits[n].to(p.device), tuple(p.shape)) for n, p in named.items()}
