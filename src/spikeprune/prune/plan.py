"""The plan of mask updates: when they are, what sparsity each has, how much it regrows and how long it looks before."""

import sys
from bisect import bisect_left
from dataclasses import dataclass, field
from functools import cached_property
from typing import final

from spikeprune.core.errors import InvalidValue
from spikeprune.core.schedule import Constant, MaskUpdate, Schedule
from spikeprune.methods.base import Method

MEMBRANE = frozenset({"membrane", "spikes"})  # needs of a method that neurons are recorded for


def _looks(method: Method) -> int:
    observation = method.observation()
    return sys.maxsize if observation.whole else observation.batches


@final
@dataclass(frozen=True)
class UpdatePlan:
    """All mask updates of a run, in order. It is only data: nothing in it changes while a model trains.

    Attributes:
        updates: with `kept` left out, which only a space of units can tell.
        share: the regrow share; 0 throughout for a method that does not regrow.
        initial: the sparsity before the first one.
        looks: steps, its own included, that neurons are recorded for a mask update; 0 if the method looks at none.
        regrows: whether the method looks for the sake of regrowth only.
    """

    updates: tuple[MaskUpdate, ...]
    share: Schedule = field(default_factory=lambda: Constant(0.0))
    initial: float = 0.0
    looks: int = 0
    regrows: bool = False

    @classmethod
    def of(cls, method: Method, schedule: Schedule, nm: tuple[int, int] | None = None) -> "UpdatePlan":
        """The plan of a method under a schedule; a method that does not prune has no mask updates.

        Raises: InvalidValue if an n:m pattern does not allow the sparsity.
        """
        steps = schedule.steps() if method.prunes else ()
        targets = [schedule.value(number, len(steps)) for number in range(1, len(steps) + 1)]
        most = 1.0 if nm is None else 1 - nm[0] / nm[1]
        if targets and max(targets) > most + 1e-9:
            raise InvalidValue(
                f"pattern '{nm[0]}:{nm[1]}' allows sparsity {most:g} at most, the schedule asks for {max(targets):g}"
                if nm is not None
                else f"the schedule asks for a sparsity of {max(targets):g}, and the highest is {most:g}"
            )
        pairs = enumerate(zip(steps, targets, strict=True), start=1)
        return cls(
            tuple(MaskUpdate(number, step, target, None) for number, (step, target) in pairs),
            method.regrowth().share if method.regrows else Constant(0.0),
            schedule.first,
            _looks(method) if method.needs & MEMBRANE else 0,
            method.regrows,
        )

    @property
    def last_step(self) -> int:
        """The step of the last mask update; 0 if there is none."""
        return self.updates[-1].step if self.updates else 0

    @property
    def highest(self) -> float:
        """The highest sparsity that will be asked for."""
        return max((update.target for update in self.updates), default=0.0)

    @cached_property
    def looks_at_neurons(self) -> bool:
        """Whether neurons are recorded for any mask update; asked in every step, and a run may have many updates."""
        return any(self.window(update) > 0 for update in self.updates)

    def at(self, step: int) -> MaskUpdate | None:
        """The mask update of that step, if it has one."""
        update = self.coming(step)
        return update if update is not None and update.step == step else None

    def coming(self, step: int) -> MaskUpdate | None:
        """The first mask update at `step` or later."""
        place = bisect_left(self.updates, step, key=lambda update: update.step)
        return self.updates[place] if place < len(self.updates) else None

    def passed(self, step: int) -> MaskUpdate:
        """The last mask update before `step`; one of number 0 at the initial sparsity if there was none."""
        place = bisect_left(self.updates, step, key=lambda update: update.step)
        return self.updates[place - 1] if place else MaskUpdate(0, 0, self.initial, None)

    def share_at(self, update: MaskUpdate) -> float:
        """The regrow share of a mask update."""
        return self.share.share(update.number, len(self.updates), update.step)

    def window(self, update: MaskUpdate) -> int:
        """How many steps are recorded for a mask update, its own included; 0 if it looks at no neuron."""
        return 0 if self.regrows and self.share_at(update) == 0 else self.looks
