"""The Updater: shows a method what it may see at a mask update and turns its scores into masks."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import final

import torch
from torch import Tensor

from spikeprune.core.errors import InvalidValue
from spikeprune.core.evidence import Evidence, Scores
from spikeprune.core.mask import Outcome, count
from spikeprune.core.schedule import MaskUpdate
from spikeprune.core.select import check_numbers
from spikeprune.core.update import Bools, Target
from spikeprune.methods.base import Memory, Method, Observation, Regrowth, Training
from spikeprune.methods.registry import name_of
from spikeprune.model.observer import Observer
from spikeprune.prune.plan import UpdatePlan
from spikeprune.prune.spaces.space import Space
from spikeprune.upkeep.gradients import KeptCurvature, KeptGradients
from spikeprune.upkeep.ranks import sum_over_ranks


@final
@dataclass
class Updater:
    """A method among the parts that it works with. Models and optimizers are touched by `space` and `upkeep` only.

    Attributes:
        seed: of draws; each mask update has a generator of its own, the same on every rank.
        memory: what a method that acts in every step keeps.
        acted: whether the method has seen the gradients of the coming update.
        start: parameter name -> weights that a rewind goes back to.
        no_regrowth: names of prunable parameters that get nothing back.
    """

    method: Method
    plan: UpdatePlan
    space: Space
    observer: Observer
    gradients: KeptGradients
    seed: int = 0
    memory: Memory = field(default_factory=dict[str, dict[str, Tensor]])
    acted: bool = False
    start: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    no_regrowth: frozenset[str] = frozenset()
    curvature: KeptCurvature = field(default_factory=KeptCurvature)

    def __post_init__(self) -> None:
        self.regrowth = self.method.regrowth() if self.method.regrows else Regrowth(0.0)
        self.observation: Observation = self.method.observation()

    # ---- one mask update --------------------------------------------------------------------------------------

    def cuts(self, update: MaskUpdate) -> bool:
        """Whether the method cuts in this mask update; if not, it only records."""
        return self.method.at_event(self.training(update.step, update=update))

    def outcome(self, update: MaskUpdate, protected: Mapping[str, Tensor] | None) -> Outcome:
        """The masks of a mask update. The parameters do not follow yet.

        Args:
            protected: units that were regrown by the last one, for methods that grant them grace.
        Raises: MissingEvidence if the method was not shown what it needs.
        """
        share = self.plan.share_at(update) if self.method.regrows else 0.0
        after = share > 0 and self.observation.measure == "after"
        looks = self.plan.window(update) > 0
        self.observer.check()
        rates = self.observer.rates(sum_over_ranks)
        target = self.space.target(update.target, rates, self.observer)
        alive = self._before_last_cut(update, rates, membrane=looks)
        evidence = self.evidence(update, membrane=looks and not after, alive=alive)
        memory = self.method.remember(evidence)
        if memory is not None:
            self.memory = memory
            evidence = replace(evidence, memory=memory)
        scores = self.method.score(evidence)
        asked = share > 0 and "survivors" in self.method.needs
        if after or asked:
            growing = self.space.may_regrow(self.observer) if after else scores.keys() - self.no_regrowth
            anything = {n: torch.zeros_like(s) for n, s in scores.items() if n in growing}
            survivors = self.select(update, scores, anything, share, target, protected).survivors
            if after:
                self._measure_after(survivors)
                evidence = self.evidence(update, membrane=True)
            evidence = replace(evidence, survivors=survivors if asked else None)
        regrow_scores = self.method.regrow_score(evidence) if share > 0 else {}
        regrow_scores = {n: s for n, s in regrow_scores.items() if n not in self.no_regrowth}
        for kind, found in (("score", scores), ("regrow score", regrow_scores)):
            check_numbers(found, f"a {name_of(self.method)} {kind}", f"the mask update of step {update.step}")
        growth = self.method.growth(evidence) if share > 0 and self.method.within_layers else None
        return self.select(update, scores, regrow_scores, share, target, protected, growth, alive)

    def _before_last_cut(self, update: MaskUpdate, rates: Mapping[str, Tensor], *, membrane: bool) -> Bools | None:
        """The masks after all cuts of a mask update but the last one; None for a method that cuts once."""
        cuts, alive, total = self.method.cuts_per_update(), None, self.space.total
        first, last = count(self.space.alive) / max(total, 1), 1 - update.target
        for cut in range(1, cuts):
            left = math.ceil(total * first * (last / first) ** (cut / cuts) - 1e-6)
            target = self.space.target(1 - left / total, rates, self.observer)
            scores = self.method.score(self.evidence(update, membrane=membrane, alive=alive))
            check_numbers(scores, f"a {name_of(self.method)} score", f"the mask update of step {update.step}")
            alive = self.select(update, scores, {}, 0.0, target, alive=alive).alive
        return alive

    def evidence(self, update: MaskUpdate, *, membrane: bool, alive: Bools | None = None) -> Evidence:
        """The evidence for the method.

        Args:
            membrane: whether the recorded statistics belong to it.
            alive: the masks, if not the present ones.
        """
        space, observer = self.space, self.observer
        masks, weights = space.alive, space.weights()
        if alive is not None:
            masks, weights = dict(alive), {n: w * alive[n] for n, w in weights.items()}
        grads = self.gradients.summed(sum_over_ranks)
        values = self.gradients.before or {n: p.detach() for n, p in space.tracked.items()}
        statistics = observer.statistics(sum_over_ranks) if membrane else None
        curved = "curvature" in self.method.needs
        return Evidence(
            weights=weights,
            masks=masks,
            generator=torch.Generator().manual_seed(self.seed * 1_000_003 + update.number),
            number=update.number,
            count=len(self.plan.updates),
            grads=space.grads(grads, values) if grads else {},
            before=space.weights(values) if grads else self.curvature.before if curved else None,
            statistics=None if statistics is None else space.statistics(statistics, observer),
            state=space.parts.upkeep.state() if "state" in self.method.needs else None,
            memory=self.memory,
            channels=space.facts(grads, values) if self.method.channels else None,
            flow=observer.flow(masks) if "flow" in self.method.needs else None,
            curvature=self.curvature.shown(name_of(self.method), update.step) if curved else None,
        )

    def select(
        self,
        update: MaskUpdate,
        scores: Scores,
        regrow_scores: Scores,
        share: float,
        target: Target,
        protected: Mapping[str, Tensor] | None = None,
        growth: Mapping[str, float] | None = None,
        alive: Bools | None = None,
    ) -> Outcome:
        """The masks that follow from scores, by the method's own rules; `alive` if not from the present masks."""

        def exchange(kept: int, alive: int) -> int:
            return self.method.survivors(kept, alive, share)

        if self.regrowth.rule == "authors":
            return self.space.authors(regrow_scores, update.target, share)
        alive = self.space.alive if alive is None else alive
        if self.method.acts:  # weights that such a method has set to 0 by its own rule may come back by it
            alive = {n: torch.ones_like(m) for n, m in alive.items()}
        return self.space.select(
            scores,
            regrow_scores,
            alive,
            target,
            share=share,
            candidates=self.regrowth.candidates,
            protected=protected if self.regrowth.grace else None,
            exchange=exchange if self.method.within_layers else None,
            growth=growth,
        )

    def _measure_after(self, survivors: Mapping[str, Tensor]) -> None:
        """For measure="after": runs the step's forwards once more with the cut weights at 0, then puts them back."""
        masks = self.space.masks(survivors)
        weights = {n: self.space.parts.model.get_parameter(n).data for n in masks}
        before = {n: weight.clone() for n, weight in weights.items()}
        for name, mask in masks.items():
            weights[name].mul_(mask)
        self.observer.measure_again()
        for name, value in before.items():
            weights[name].copy_(value)

    def quota(self, sparsity: float) -> dict[str, int]:
        """How many units each layer would keep at a sparsity, by the magnitude of the present weights."""
        target = self.space.target(sparsity, {}, self.observer)
        scores = {n: w.abs() for n, w in self.space.weights().items()}
        alive = self.space.select(scores, {}, self.space.alive, target, share=0.0).alive
        return {n: count({n: m}) for n, m in alive.items()}

    # ---- methods that act in every step -----------------------------------------------------------------------

    def act_before(self, step: int) -> None:
        """Before the update of `step`: the method may change gradients."""
        if not self.acted:
            self.acted = True
            with torch.no_grad():
                self.method.before_update(self.training(step, grads=True))

    @torch.no_grad()
    def act_after(self, step: int, *, closure: bool) -> None:
        """After the update of `step`: the method may change weights and masks.

        Raises: InvalidValue if the method had to see the gradients, and a closure hid them.
        """
        if closure and not self.acted and self.method.sees_gradients:
            raise InvalidValue(
                f"{name_of(self.method)} takes part in every step, before the update too: use attach(optimizer), "
                "or call mask_grads() before each step"
            )
        self.acted = False
        masks = self.method.after_update(self.training(step))
        if masks is not None:
            self.space.parts.upkeep.set(dict(masks))

    def training(self, step: int, *, grads: bool = False, update: MaskUpdate | None = None) -> Training:
        """The training step that is being made, as the method sees it."""
        parameters, upkeep = self.space.parts.parameters, self.space.parts.upkeep
        passed = update or self.plan.passed(step)
        groups = [group for optimizer in upkeep.optimizers for group in optimizer.param_groups]
        rate_of = {id(p): float(group["lr"]) for group in groups for p in group["params"]}
        decay_of = {id(p): float(group.get("weight_decay", 0.0)) for group in groups for p in group["params"]}
        decoupled = any(isinstance(optimizer, torch.optim.AdamW) for optimizer in upkeep.optimizers)

        def select(scores: Scores) -> Mapping[str, Tensor]:
            return self.select(passed, scores, {}, 0.0, self.space.target(passed.target, {}, self.observer)).alive

        return Training(
            weights={n: p.detach() for n, p in parameters.items()},
            grads={n: p.grad for n, p in parameters.items() if p.grad is not None} if grads else {},
            masks=upkeep.masks,
            memory=self.memory,
            rates={n: rate_of.get(id(p), 0.0) for n, p in parameters.items()},
            progress=min(step / max(self.plan.last_step, 1), 1.0),
            sparsity=self.plan.updates[-1].target,
            select=select,
            decays={n: decay_of.get(id(p), 0.0) for n, p in parameters.items()},
            decoupled=decoupled or any(group.get("decoupled_weight_decay", False) for group in groups),
            start=self.start,
            seed=self.seed * 1_000_033 + step,
        )
