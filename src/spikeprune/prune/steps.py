"""The work around every optimizer step: gradients are kept and masked, masks are updated, weights are held."""

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast, final

import torch
from torch import Tensor

from spikeprune.core.allocate import kept
from spikeprune.core.errors import InvalidValue, MissingEvidence
from spikeprune.core.mask import count, unchanged
from spikeprune.core.schedule import MaskUpdate, Schedule
from spikeprune.methods.registry import name_of
from spikeprune.model.trace import Graph
from spikeprune.prune.choices import Choices
from spikeprune.prune.history import History
from spikeprune.prune.plan import UpdatePlan
from spikeprune.prune.updater import Updater
from spikeprune.upkeep import ranks
from spikeprune.upkeep.attachment import Attachment
from spikeprune.upkeep.follow import Follower
from spikeprune.upkeep.guard import Guard, missing
from spikeprune.upkeep.rewind import Rewind

_log = logging.getLogger("spikeprune")


@final
class Steps:
    """Count completed optimizer steps and carry out what each of them requires.

    Attributes:
        done: completed steps.
        began: the sparsity of the masks that the user gave, where the schedule starts; None without such masks.
        joined: the step of a loaded state that came from another schedule or network; None if there was none.
        over: whether the Pruner is finished, so that the model may be changed freely.
        followers: averaged copies of the model that keep to the masks.
        seconds: wall-clock time spent in this class.
        full_gradients: number of gradients of all weights, dead ones too, that the method needed in the last step.
    """

    def __init__(
        self, updater: Updater, history: History, rewind: Rewind | None, schedule: Schedule, choices: Choices
    ) -> None:
        self.updater, self.history, self.rewind = updater, history, rewind
        self.schedule, self.choices, self.budget = schedule, choices, choices.budget
        self.plan, self.space, self.upkeep = updater.plan, updater.space, updater.space.parts.upkeep
        self.guard = Guard(self.space.parts.model, self.space.parts.parameters, self.space.parts.frozen)
        self.began: float | None = None
        self.joined: int | None = None
        self.done = 0
        self.over = False
        self.seconds = 0.0
        self.full_gradients = 0
        self.followers: list[Follower] = []
        self._attachment: Attachment | None = None

    @property
    def attached(self) -> bool:
        """Whether hooks are on an optimizer."""
        return self._attachment is not None

    @property
    def clean(self) -> bool:
        """Whether regrown weights start with clean optimizer state, so that gradients of dead weights are masked."""
        if self.updater.method.acts:  # dead weights may come back by the method's own rule, as long as it is in force
            return not self._acts
        return self.updater.regrowth.clean

    @property
    def _acts(self) -> bool:
        return self.updater.method.acts and self.done < self.plan.last_step

    @property
    def searching(self) -> bool:
        """Whether a coming mask update may still change the masks."""
        found = self.updater.method.rewinds == "once" and self.rewind is not None and self.rewind.since > 0
        return self.done < self.plan.last_step and not found

    def round(self) -> tuple[int, int | None]:
        """First and last step of the present round of a method that rewinds; (0, None) for others."""
        if self.rewind is None:
            return 0, None
        ends = self.done if self.updater.method.rewinds == "each" else self.plan.last_step
        coming = self.plan.coming(ends + 1)
        return self.rewind.since, None if coming is None else coming.step

    def learn(self, graph: Graph) -> None:
        """Take in the traced model, from which the space learns its units."""
        self.space.learn(graph, self.plan.highest)
        if self.began is not None and self.choices.by_channel:
            self.begin()  # the sparsity of given masks can be told only now

    def begin(self) -> None:
        """Lets the schedule run from the sparsity of the present masks.

        Raises: InvalidValue if it ends below that.
        """
        alive, total, to = count(self.space.alive), self.space.total, self.schedule.to
        if self.updater.method.prunes and kept(total, to) > alive:
            raise InvalidValue(
                f"the given masks keep {alive} of {total} (sparsity {1 - alive / total:.4f}), fewer than the "
                f"schedule's to={to:g} keeps ({kept(total, to)}); raise `to`, or call sp.hold(model)"
            )
        self.run_from(1 - alive / total if total else 0.0)

    def run_from(self, sparsity: float) -> None:
        """Make the plan anew for a network that has this sparsity already."""
        self.began = sparsity
        self.plan = UpdatePlan.of(self.updater.method, self.schedule.since(sparsity), self.choices.nm)
        self.updater.plan = self.plan

    # ---- hooks ------------------------------------------------------------------------------------------------

    def attach(
        self, optimizers: Sequence[Any], settings: Mapping[str, object], owner: Callable[[], object | None]
    ) -> None:
        """Puts hooks on optimizers; those on others are taken off.

        Args:
            settings: what all ranks must have alike.
            owner: the user's Pruner, or None if the user holds it no longer.
        Raises: InvalidValue if no optimizer holds some prunable parameter, one takes no hooks or has another Pruner of
            the same parameters; if the model has other parameters by now; if ranks differ in their settings.
        """
        self.guard.check()
        ranks.check_alike(settings, self._device)
        attachment = Attachment(self, optimizers, self.space.parts.parameters, owner)
        self.detach()
        self._attachment, self.upkeep.optimizers = attachment, attachment.optimizers
        if self.rewind is not None:
            self.rewind.keep(self.done)  # again: since the Pruner was made, weights may have been loaded
        self.hold_state()
        if self.done == 0 and (told := self.guard.unheld(self.upkeep.masks)):
            _log.warning("%s", told)
        self.over = False
        self.prepare()

    @property
    def _device(self) -> torch.device:
        return next(iter(self.space.parts.parameters.values())).device

    def detach(self) -> None:
        """Takes every hook off optimizer and model."""
        if self._attachment is not None:
            self._attachment.remove()
        self._attachment = None
        self.updater.observer.remove()

    def density(self, *, checked: bool = True) -> float:
        """Share of the prunable weights (or channels) that is alive.

        Raises: InvalidValue if the model has other parameters by now, unless the Pruner is finished or not `checked`.
        """
        if checked and not self.over:
            self.guard.check()
        return count(self.space.alive) / self.space.total if self.space.total else 1.0

    @property
    def missing(self) -> str:
        """Which mask updates have not been made, in words; empty if all were."""
        return missing(self.plan.updates, self.done) if self.searching else ""

    def check_obeyed(self) -> None:
        """Raises: InvalidValue if the model has other parameters by now, or if a dead weight is not 0."""
        self.guard.check()
        self.guard.check_zeros(self.upkeep.masks)

    def finish(self) -> None:
        """Takes off all that was put on the model, and holds the weights. Mask updates that never came are logged.

        Raises: InvalidValue if the model has other parameters by now, whose zeros nobody held, or if somebody has
            written into dead weights; then nothing is changed.
        """
        self.check_obeyed()
        self.detach()
        self.over = True
        self.upkeep.hold()
        while self.followers:
            self.followers.pop().finish()
        if self.missing:
            ranks.meet(ranks.ENDS, self.done, self._device)
            _log.warning("the schedule was not carried out: at step %d, %s", self.done, self.missing)

    def hold_state(self) -> None:
        """Clears optimizer state that dead weights have from before the Pruner knew the optimizer or the masks."""
        if self.clean and not self.upkeep.dense:
            self.upkeep.hold_state(self.upkeep.masks)

    def before_step(self, optimizer: torch.optim.Optimizer, *, closure: bool) -> None:
        """Called before an update: checks that the model is still the same, and keeps and masks the gradients."""
        started = time.perf_counter()
        self.guard.check()
        self.guard.check_frozen()
        update = self.plan.at(self.done + 1)
        if update is not None:
            self.guard.check_trained()
        if update is not None or self.guard.written:
            self.guard.check_zeros(self.upkeep.masks)
        if not closure:  # a closure computes the gradients inside the step, so these are old ones
            self.gradients_computed()
        self.seconds += time.perf_counter() - started

    def gradients_computed(self) -> None:
        """Called when the gradients of this step are computed: keeps and masks them."""
        if self.updater.gradients.empty:  # else the user has called mask_grads, and those of dead weights are gone
            self.keep_grads()
        self.hold_grads()

    def after_step(self, optimizer: torch.optim.Optimizer, *, closure: bool, last: bool) -> None:
        """Called after an optimizer's update. A step is complete when the last of several optimizers has updated.

        An update that the optimizer skipped (found_inf) counts for nothing.
        Args: closure: whether the update ran with a closure. last: whether no other optimizer follows in this step.
        """
        found = getattr(optimizer, "found_inf", None)  # a fused optimizer has it, and skips the step inside its kernel
        if isinstance(found, Tensor) and bool(found > 0):
            self.updater.gradients.forget()
            self.updater.acted = False
            return
        started = time.perf_counter()
        if last:
            self.advance(closure=closure)
        else:
            self.upkeep.after_step(closure=closure, clean=self.clean)
            self.guard.note()
        self.seconds += time.perf_counter() - started

    def after_others(self, optimizer: torch.optim.Optimizer) -> None:
        """Zeroes dead weights again after an outer optimizer, or one that is not attached, has changed the weights."""
        self.upkeep.hold_others(optimizer)
        for follower in self.followers:
            follower.hold()
        self.guard.note()

    def keep_grads(self) -> None:
        """Before a mask update, keeps the gradients of all weights for a method that looks at them."""
        if "grads" in self.updater.method.needs and self.plan.at(self.done + 1) is not None:
            self.updater.gradients.keep(self.space.tracked)

    def hold_grads(self) -> None:
        """Called before the update: lets the method act, then zeroes the gradients of dead weights."""
        if self._acts:
            self.updater.act_before(self.done + 1)
        if self.clean:
            self.upkeep.hold_grads()

    def advance(self, *, closure: bool) -> None:
        """Called after an update: completes the step, and makes its mask update if it has one."""
        if self.updater.gradients.empty:
            self.keep_grads()
        self.full_gradients = self._full_gradients()
        if self._acts:
            self.updater.act_after(self.done + 1, closure=closure)
        self.done += 1
        self.updater.curvature.complete_step()
        if self.rewind is not None:
            self.rewind.keep(self.done)
        update = self.plan.at(self.done)
        if update is None:
            self.upkeep.after_step(closure=closure, clean=self.clean)
        else:
            self.upkeep.hold()  # warm momentum moves dead weights, which must not compete in the ranking
            ranks.meet(ranks.UPDATES, self.done, self._device)
            self.make(update)
        self.guard.note()
        for follower in self.followers:
            follower.hold()
        self.prepare()

    def _full_gradients(self) -> int:
        updater = self.updater
        if self.done >= self.plan.last_step:
            return 0
        if not self.clean:
            return 1
        if self.plan.at(self.done + 1) is None:
            return 0
        # The synapse unit is computed as the layers' weight gradient is, for as many steps as it is averaged over.
        synapses = updater.observation.batches if updater.observation.unit == "synapse" else 0
        return synapses + ("grads" in updater.method.needs)

    def prepare(self) -> None:
        """Tells the observer what to record in the coming step. Far from mask updates it has no hooks at all."""
        coming = self.done + 1
        update = self.plan.coming(coming)
        costs = self.budget in ("macs", "synops")
        if update is None:
            return
        flow = "flow" in self.updater.method.needs
        if not (self.plan.looks_at_neurons or costs or flow or not self.space.known):
            self.updater.observer.glance()
            return
        self.updater.observer.prepare(
            membrane=coming > update.step - self.plan.window(update),
            rates=self.budget == "synops" and coming == update.step,
        )

    # ---- mask updates -----------------------------------------------------------------------------------------

    @torch.no_grad()
    def make(self, update: MaskUpdate) -> None:
        """Makes a mask update: new masks, an entry in the history, and parameters that follow."""
        updater, before = self.updater, self.space.alive
        if self.rewind is not None:
            updater.start = {n: v for n, v in self.rewind.point.items() if n in self.space.parts.parameters}
        cuts = updater.cuts(update)
        outcome = updater.outcome(update, self.history.regrown) if cuts else unchanged(before)
        asked = self.space.counted(update).kept if updater.regrowth.rule == "authors" and cuts else None
        self.history.add(update, before, outcome, cut=cuts, asked=asked)
        start_value = updater.regrowth.start_value
        if updater.regrowth.cut_forgets and start_value == "kept":
            start_value = "exchanged"
        self.space.apply(outcome, start_value, self.clean)
        if cuts:
            self.upkeep.forget_history()
        if cuts and self.rewind is not None:
            self.rewind.go(self.done, self.upkeep)
        if update is self.plan.updates[-1]:
            updater.memory = {}
        updater.gradients.forget()
        updater.curvature.forget()
        updater.observer.forget()

    def cut(self) -> None:
        """Makes the next mask update now, with no training step around it."""
        update = self.plan.coming(self.done + 1)
        if update is not None:
            self.done = update.step
            self.make(update)

    def observe(self, data: Iterable[Any] | None, loss: Callable[[Any, Any], Tensor] | None) -> None:
        """Shows the model batches outside of any training loop. Nothing of the model changes.

        Raises: MissingEvidence if the method needs batches or a loss that are not given.
        """
        membrane, rates = self.plan.looks_at_neurons, self.budget == "synops"
        method = self.updater.method
        graph = self.budget in ("macs", "synops") or "flow" in method.needs or not self.space.known
        curved = "curvature" in method.needs
        differentiates = "grads" in method.needs or curved
        if data is None:
            if membrane or graph or differentiates:
                raise MissingEvidence(f"{name_of(method)} must see batches of data; pass data=")
            return
        if differentiates and loss is None:
            raise MissingEvidence(f"{name_of(method)} needs gradients; pass loss=, for example F.cross_entropy")
        if curved:  # differentiates twice, so it sees the batches twice
            data = list(data)
        found = self.updater.observer.observe(
            data, loss if "grads" in method.needs else None, membrane=membrane, rates=rates, graph=graph
        )
        if curved and loss is not None:
            batches = cast("list[Any]", data)
            products = self.updater.observer.curvature(batches, loss, self.space.alive, ranks.sum_over_ranks)
            self.updater.curvature.take(products, self.space.tracked)
        self.updater.gradients.take({n: g for n, g in found.items() if n in self.space.tracked})
