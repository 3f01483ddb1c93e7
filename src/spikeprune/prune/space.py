"""What is pruned one by one: single weights, or whole channels. All else about an event is the same for both."""

import abc
from collections.abc import Mapping
from typing import Any, Literal, cast, final

import torch
from torch import Tensor, nn

from spikeprune.core import allocate as allocation
from spikeprune.core.errors import InvalidValue, MissingEvidence
from spikeprune.core.evidence import Scores
from spikeprune.core.mask import unpack
from spikeprune.core.schedule import Event
from spikeprune.count.costs import weight_costs
from spikeprune.model.trace import Graph
from spikeprune.prune.channels import (
    ChannelSpace,
    authors_channels,
    channel_round,
    check_budget,
    network_cost,
    slope,
    weight_norm,
)
from spikeprune.prune.channels import bn_scale as channel_scale
from spikeprune.prune.recorder import Recorder
from spikeprune.prune.update import Bools, Outcome, Target, authors_update, prune_and_regrow
from spikeprune.prune.upkeep import Upkeep

Tensors = Mapping[str, Tensor]


class Space(abc.ABC):
    """The units of a Pruner, as vectors or tensors by name, and how masks of parameters follow from theirs.

    Args:
        model: the user's.
        parameters: name -> the weights that may be pruned.
        upkeep: holds the masks of the parameters.
        budget, allocate, floor: as for the Pruner.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        upkeep: Upkeep,
        *,
        budget: str,
        allocate: str,
        floor: float,
    ) -> None:
        self.model, self.parameters, self.upkeep = model, parameters, upkeep
        self.budget, self.allocate, self.floor = budget, allocate, floor

    known: bool  # whether the units are known: channels are only after a first forward
    total: int  # how many units there are; 0 while unknown

    @property
    @abc.abstractmethod
    def alive(self) -> Tensors:
        """Name -> bool: which units are alive."""

    @property
    @abc.abstractmethod
    def tracked(self) -> Mapping[str, nn.Parameter]:
        """The parameters whose gradients tell about the units."""

    @abc.abstractmethod
    def learn(self, graph: Graph, most: float) -> None:
        """Takes in the traced model; `most` is the highest sparsity that will be asked for."""

    @abc.abstractmethod
    def weights(self, values: Tensors | None = None) -> dict[str, Tensor]:
        """Name -> what a score sees as weights: of `values` of the parameters, or of the present ones."""

    @abc.abstractmethod
    def grads(self, grads: Tensors, values: Tensors) -> dict[str, Tensor]:
        """Name -> gradients by these weights; `values` are those of the parameters that `grads` belong to."""

    @abc.abstractmethod
    def facts(self) -> dict[str, dict[str, Tensor]] | None:
        """What else a method may look at of channels: kind -> name -> [C]; None for weights."""

    @abc.abstractmethod
    def statistics(self, found: Tensors, recorder: Recorder) -> Tensors:
        """The recorded statistics by unit."""

    @abc.abstractmethod
    def may_regrow(self, recorder: Recorder) -> set[str]:
        """Names whose units feed a spiking neuron."""

    @abc.abstractmethod
    def target(self, sparsity: float, rates: Tensors, recorder: Recorder) -> Target:
        """How much is kept at a sparsity; `rates` are shares of non-zero inputs, as far as measured."""

    @abc.abstractmethod
    def select(self, scores: Scores, regrow_scores: Scores, alive: Bools, target: Target, **rules: Any) -> Outcome:
        """One round; `rules` as for `prune_and_regrow`."""

    @abc.abstractmethod
    def authors(self, regrow_scores: Scores, sparsity: float, share: float) -> Outcome:
        """One round by the authors' rule."""

    @abc.abstractmethod
    def masks(self, units: Bools) -> dict[str, Tensor]:
        """Masks of parameters from masks of units."""

    @abc.abstractmethod
    def apply(self, outcome: Outcome, start_value: str, cold: bool) -> None:
        """Makes the parameters follow a round: values, masks, and with `cold` the optimizer's state."""

    @abc.abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """What is needed to go on, beside the masks of the parameters."""

    @abc.abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state_dict` returned."""

    @abc.abstractmethod
    def unpacked(self, bits: Tensors, state: Mapping[str, Any]) -> dict[str, Tensor]:
        """Packed masks of units as masks; `state` is the space's own, saved beside them."""

    def event(self, event: Event) -> Event:
        """The event with the number of units it keeps; None while the units are unknown."""
        keep = allocation.kept(self.total, event.target) if self.known else None
        return Event(event.number, event.step, event.target, keep)


@final
class Weights(Space):
    """Single weights: the units of a tensor are its entries. `nm` is (n, m) of an n:m pattern."""

    known = True

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        upkeep: Upkeep,
        *,
        budget: str,
        allocate: str,
        floor: float,
        nm: tuple[int, int] | None,
    ) -> None:
        super().__init__(model, parameters, upkeep, budget=budget, allocate=allocate, floor=floor)
        self.nm = nm
        self.total = sum(p.numel() for p in parameters.values())
        self.least = allocation.floors(parameters, floor)
        self._last: dict[str, Tensor] = {}  # values that dead weights had when they were cut, for start_value="last"
        upkeep.set({n: torch.ones_like(p, dtype=torch.bool) for n, p in parameters.items()})

    @property
    def alive(self) -> Tensors:
        return self.upkeep.masks

    @property
    def tracked(self) -> Mapping[str, nn.Parameter]:
        return self.parameters

    def learn(self, graph: Graph, most: float) -> None:
        pass  # weights need no trace to be known

    def weights(self, values: Tensors | None = None) -> dict[str, Tensor]:
        return {n: p.detach() for n, p in self.parameters.items()} if values is None else dict(values)

    def grads(self, grads: Tensors, values: Tensors) -> dict[str, Tensor]:
        return dict(grads)

    def facts(self) -> None:
        return None

    def statistics(self, found: Tensors, recorder: Recorder) -> Tensors:
        return found

    def may_regrow(self, recorder: Recorder) -> set[str]:
        return {n for n in self.parameters if recorder.feeds_neuron(n)}

    def target(self, sparsity: float, rates: Tensors, recorder: Recorder) -> Target:
        keep = allocation.kept(self.total, sparsity)
        if self.budget == "weights":
            return Target(keep, self.allocate, self.least, pattern=self.nm)
        cost, fixed = weight_costs(self.budget, self.model, self.parameters, recorder.graph, rates)
        whole = sum(float(torch.as_tensor(cost[n]).expand(p.shape).sum()) for n, p in self.parameters.items())
        allowed = (whole + fixed) * (1 - sparsity) - fixed
        if allowed <= 0:
            raise InvalidValue(
                f"a sparsity of {sparsity:g} in {self.budget} cannot be met: what is not prunable alone needs more"
            )
        return Target(keep, self.allocate, self.least, cost=cost, budget=allowed)

    def select(self, scores: Scores, regrow_scores: Scores, alive: Bools, target: Target, **rules: Any) -> Outcome:
        return prune_and_regrow(scores, regrow_scores, alive, self.weights(), target, **rules)

    def authors(self, regrow_scores: Scores, sparsity: float, share: float) -> Outcome:
        return authors_update(self.weights(), regrow_scores, int(self.total * (1 - sparsity)), share)

    def masks(self, units: Bools) -> dict[str, Tensor]:
        return dict(units)

    def apply(self, outcome: Outcome, start_value: str, cold: bool) -> None:
        """Clears what did not survive the cut, so that regrown weights start anew; sets the masks."""
        before = self.alive
        for name, p in self.parameters.items() if start_value == "last" else ():
            last = self._last.get(name, torch.zeros_like(p))
            self._last[name] = torch.where(before[name], p.detach(), last)
        untouched = outcome.survivors
        if start_value == "kept":
            untouched = {n: m | (outcome.regrown[n] & before[n]) for n, m in untouched.items()}
        for name, p in self.parameters.items():
            p.data.mul_(untouched[name].to(p.dtype))
            if start_value == "last":
                p.data.add_(self._last[name] * outcome.regrown[name])
        if cold:
            self.upkeep.hold_state(untouched)
        self.upkeep.set(outcome.alive)

    def state_dict(self) -> dict[str, Any]:
        return {"last": dict(self._last)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._last = {n: v.to(self.parameters[n]) for n, v in state["last"].items()}

    def unpacked(self, bits: Tensors, state: Mapping[str, Any]) -> dict[str, Tensor]:
        device = next(iter(self.parameters.values())).device
        return {n: unpack(b.to(device), tuple(self.parameters[n].shape)) for n, b in bits.items()}


@final
class Channels(Space):
    """Whole channels: one vector per group. They are known once the model has been traced.

    A channel that comes back has the weights, scale and shift that it had when it was cut.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        upkeep: Upkeep,
        *,
        budget: str,
        allocate: str,
        floor: float,
        pattern: str,
    ) -> None:
        super().__init__(model, parameters, upkeep, budget=budget, allocate=allocate, floor=floor)
        self.pattern: Literal["channel", "gate"] = cast(Literal["channel", "gate"], pattern)
        self._space: ChannelSpace | None = None
        self._least: dict[str, int] = {}
        self._rates: dict[str, Tensor] = {}  # share of non-zero inputs, of cut channels as it was before
        self._cost: Any = None
        self._saved: Mapping[str, Any] | None = None  # a state that came before the channels were known
        upkeep.set({})

    @property
    def known(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the model has been traced."""
        return self._space is not None

    @property
    def total(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
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
    def alive(self) -> Tensors:
        return {} if self._space is None else self._space.alive

    @property
    def tracked(self) -> Mapping[str, nn.Parameter]:
        return dict(self.model.named_parameters())

    def learn(self, graph: Graph, most: float) -> None:
        """Finds the groups.

        Raises: InvalidValue if channels of this model cannot be cut, or no network meets the budget.
        """
        space = ChannelSpace(graph, self.model, self.pattern, self.parameters)
        self._least = allocation.floors(space.weights(), self.floor)
        if self.budget == "weights":
            check_budget(space.groups, most, self._least)
        else:
            self._cost = network_cost(self.budget, space.groups, self.model, graph, self._rates)
            if self.budget != "synops":
                self._check_cost(space, most)
        self._space = space
        self.upkeep.set(space.masks())
        if self._saved is not None:
            self.load_state_dict(self._saved)

    def _check_cost(self, space: ChannelSpace, most: float) -> None:
        least = {n: torch.arange(len(m)) < self._least[n] for n, m in space.alive.items()}
        lowest, whole = self._cost(least), self._cost({n: torch.ones_like(m) for n, m in space.alive.items()})
        if lowest > whole * (1 - most):
            raise InvalidValue(
                f"a sparsity of {most:g} in {self.budget} cannot be met without a layer vanishing; "
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
        kinds = {"scale": channel_scale, "norm": weight_norm}
        found = {kind: {g.name: of(g, values) for g in self.space.groups} for kind, of in kinds.items()}
        return {kind: {n: v.cpu() for n, v in each.items() if v is not None} for kind, each in found.items()}

    def statistics(self, found: Tensors, recorder: Recorder) -> Tensors:
        return self.space.statistics(recorder.pairs or {}, found)

    def may_regrow(self, recorder: Recorder) -> set[str]:
        names = {n: torch.zeros(len(p)) for n, p in self.parameters.items() if recorder.feeds_neuron(n)}
        return set(self.statistics(names, recorder))

    def target(self, sparsity: float, rates: Tensors, recorder: Recorder) -> Target:
        keep = allocation.kept(self.space.total, sparsity)
        if self._cost is None:
            return Target(keep, self.allocate, self._least)
        if self.budget == "synops":
            self._remember(rates)
        whole = self._cost({n: torch.ones_like(m) for n, m in self.alive.items()})
        return Target(keep, self.allocate, self._least, budget=whole * (1 - sparsity))

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

    def select(self, scores: Scores, regrow_scores: Scores, alive: Bools, target: Target, **rules: Any) -> Outcome:
        return channel_round(scores, regrow_scores, alive, target, cost=self._cost, **rules)

    def authors(self, regrow_scores: Scores, sparsity: float, share: float) -> Outcome:
        return authors_channels(self.weights(), regrow_scores, sparsity, share)

    def masks(self, units: Bools) -> dict[str, Tensor]:
        return self.space.masks(units)

    def apply(self, outcome: Outcome, start_value: str, cold: bool) -> None:
        before = self.alive
        masks = self.space.apply(outcome)
        if cold:
            self.upkeep.hold_state(self.masks({n: m & before[n] for n, m in outcome.alive.items()}))
        self.upkeep.set(masks)

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
        self.upkeep.set(self._space.masks())

    def unpacked(self, bits: Tensors, state: Mapping[str, Any]) -> dict[str, Tensor]:
        return {n: unpack(b.cpu(), tuple(state["alive"][n].shape)) for n, b in bits.items()}
