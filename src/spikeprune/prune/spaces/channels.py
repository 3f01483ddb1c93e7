"""Whole channels as what is pruned one by one: one vector per group, [C], in place of one tensor per layer.

With `pattern="channel"` and `"gate"` the rules of a mask update are those for weights (`core/update.py`), applied to
the vectors of a `ChannelSpace`.
"""

from collections.abc import Mapping
from typing import Literal, Unpack, cast, final

import torch
from torch import Tensor, nn

from spikeprune.core import allocate as allocation
from spikeprune.core.errors import MissingEvidence
from spikeprune.core.evidence import Scores
from spikeprune.core.mask import Outcome, unpack
from spikeprune.core.select import Cost
from spikeprune.core.update import Bools, Rules, Target, channel_round
from spikeprune.count.costs import check_budget, check_cost, network_cost
from spikeprune.methods.shared.authors import authors_channels
from spikeprune.model.channel_space import ChannelSpace
from spikeprune.model.observer import Observer
from spikeprune.model.trace import Graph
from spikeprune.prune.spaces.space import Parts, Space, Tensors
from spikeprune.record.checkpoint import ChannelsState, SpaceState


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
        self._saved: ChannelsState | None = None  # a state that came before the channels were known
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
        self._least = self._floors(space, most)
        if self.parts.budget == "weights":
            check_budget(space.groups, most, self._least)
        else:
            self._cost = network_cost(self.parts.budget, space.groups, self.parts.model, graph, self._rates)
            if self.parts.budget != "synops":
                check_cost(self.parts.budget, self._cost, space.alive, most, self._least)
        if self._given is not None:
            space.take(self._given)
            self._given = None
        self._space = space
        self.parts.upkeep.set(space.masks())
        if self._saved is not None:
            self.load_state_dict(self._saved)

    def _floors(self, space: ChannelSpace, most: float) -> dict[str, int]:
        """The least that each group keeps.

        Scores of layers with many inputs are small beside those of others, so that a global ranking may leave one
        channel of such a layer, which nothing passes through. Unless the user says otherwise, a group keeps half of
        what an even cut would leave of it.
        """
        if self.parts.floor is None and (self.parts.allocate, self.parts.budget) == ("global", "weights"):
            return {group.name: max(1, int(group.channels * (1 - most) / 2 + 1e-6)) for group in space.groups}
        return allocation.floors(space.weights(), 1 if self.parts.floor is None else self.parts.floor)

    def weights(self, values: Tensors | None = None) -> dict[str, Tensor]:
        return self.space.weights(values)  # on the CPU, like all that a round over channels needs: they are few

    def grads(self, grads: Tensors, values: Tensors) -> dict[str, Tensor]:
        return self.space.grads(grads, values)

    def facts(self, grads: Tensors, before: Tensors) -> dict[str, dict[str, Tensor]]:
        return self.space.facts(grads, before)

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
            if not rates:
                raise MissingEvidence("budget='synops' needs firing rates; pass data=, or attach before the forward")
            self._rates.update(self.space.rates_before_cut(rates, self._rates))
        whole = self._cost({n: torch.ones_like(m) for n, m in self.alive.items()})
        return Target(keep, self.parts.allocate, self._least, budget=whole * (1 - sparsity))

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

    def state_dict(self) -> ChannelsState:
        if self._space is None:
            return self._saved or ChannelsState(alive={}, stash={}, rates={})
        return ChannelsState(alive=dict(self.alive), stash=self._space.stash(), rates=dict(self._rates))

    def load_state_dict(self, state: SpaceState) -> None:
        own = cast(ChannelsState, state)
        if self._space is None:
            self._saved = own if own["alive"] else None
            return
        # A state from before the first forward holds nothing: all channels were alive.
        self._space.restore(own["alive"] or {n: torch.ones_like(m) for n, m in self.alive.items()}, own["stash"])
        self._rates.update(own["rates"])
        self._saved = None
        self.parts.upkeep.set(self._space.masks())

    def unpacked(self, bits: Tensors, state: SpaceState) -> dict[str, Tensor]:
        alive = cast(ChannelsState, state)["alive"]
        return {n: unpack(b.cpu(), tuple(alive[n].shape)) for n, b in bits.items()}

    def hold(self, masks: Tensors) -> None:
        self._given = dict(masks) if self._space is None else None
        self.parts.upkeep.set(dict(masks))

    def held(self, bits: Tensors) -> dict[str, Tensor]:
        named = {n: self.parts.model.get_parameter(n) for n in bits}
        return {n: unpack(bits[n].to(p.device), tuple(p.shape)) for n, p in named.items()}
