"""The settings of a Pruner beside model, method and schedule: each is checked when the object is made."""

from dataclasses import dataclass
from typing import final

from spikeprune.core import allocate as allocation
from spikeprune.core.errors import InvalidValue, unknown
from spikeprune.core.pattern import CHANNEL_PATTERNS, nm_pattern
from spikeprune.core.schedule import Schedule
from spikeprune.count.costs import BUDGETS
from spikeprune.methods.base import Method, check_choice, check_declared
from spikeprune.methods.registry import make_method, name_of


@final
@dataclass(frozen=True)
class Choices:
    """The Pruner's choices: budget, allocation, pattern and the like.

    Raises: InvalidValue or UnknownName for a bad setting, or for two that exclude each other.
    """

    allocate: str = "global"
    pattern: str = "weight"
    budget: str = "weights"
    floor: float | None = None
    seed: int = 0
    start: str = "dense"

    @property
    def weight_floor(self) -> float | None:
        """The floor where it counts weights; None where it counts channels."""
        return None if self.by_channel else self.floor

    def __post_init__(self) -> None:
        if self.floor is None and not self.by_channel:
            object.__setattr__(self, "floor", 1)
        check_choice("start", self.start, ("dense", "random", "erk"))
        if self.budget not in BUDGETS:
            raise unknown("budget", self.budget, BUDGETS)
        if self.budget != "weights" and self.allocate != "global":
            raise InvalidValue(
                f"budget={self.budget!r} ranks all layers together; use allocate='global', not {self.allocate!r}"
            )
        allocation.check(self.allocate)
        erk_or_lamp = "erk" in (self.allocate, self.start) or self.allocate == "lamp"
        if self.nm is not None and (erk_or_lamp or self.budget != "weights"):
            raise InvalidValue(
                f"pattern {self.pattern!r} fixes what every layer keeps, so it takes allocate='global' or 'uniform', "
                f"no start='erk' and budget='weights'; got {self.allocate!r}, {self.start!r}, {self.budget!r}"
            )
        if self.by_channel and ("erk" in (self.allocate, self.start) or self.start != "dense"):
            raise InvalidValue(
                f"pattern {self.pattern!r} starts dense and knows no ERK sizes, which follow from the shapes of "
                f"kernels; got allocate={self.allocate!r}, start={self.start!r}"
            )

    @property
    def nm(self) -> tuple[int, int] | None:
        """(n, m) of an n:m pattern."""
        return nm_pattern(self.pattern)

    @property
    def by_channel(self) -> bool:
        """Whether whole channels are cut."""
        return self.pattern in CHANNEL_PATTERNS

    def check_given(self, method: Method) -> None:
        """Raises: InvalidValue where training cannot start from given masks."""
        if self.start != "dense" or self.nm is not None or self.budget != "weights" or method.acts:
            raise InvalidValue(
                "masks= takes start='dense', budget='weights', no n:m pattern and a method that leaves zeros alone "
                f"between mask updates; got {self.start!r}, {self.budget!r}, {self.pattern!r}, {name_of(method)}"
            )

    def check(self, method: Method) -> None:
        """Raises: InvalidValue for a method that cannot be had with these choices."""
        check_declared(method)
        global_weights = (self.allocate, self.budget) == ("global", "weights") and self.nm is None
        if method.regrows and method.regrowth().rule == "authors" and not global_weights:
            raise InvalidValue(
                "rule='authors' is their global ranking of single weights or channels: leave allocate and budget at "
                f"their defaults and take no n:m pattern, got {self.allocate!r}, {self.budget!r}, {self.pattern!r}"
            )
        name = name_of(method)
        if method.channels and not self.by_channel:
            raise InvalidValue(f"{name} scores whole channels; pass pattern='channel' or 'gate', got {self.pattern!r}")
        by_weight = method.acts or method.rewinds != "never" or "state" in method.needs
        by_weight |= bool({"flow", "curvature"} & method.needs)
        by_weight |= (method.regrows and "grads" in method.needs) or method.observation().unit == "synapse"
        if self.by_channel and by_weight:
            raise InvalidValue(
                f"{name} works by single weights (a cut channel has no gradient and no synapse that would speak for "
                f"it); for pattern {self.pattern!r} take criticality, random, magnitude, or a channel score such as "
                "bn-scale"
            )


def method_of(method: object, schedule: object) -> Method:
    """The method object, from itself or from its name.

    Raises: InvalidValue or UnknownName for anything else, or if `schedule` is no schedule.
    """
    found = make_method(method) if isinstance(method, str) else method
    if not isinstance(found, Method):
        raise InvalidValue(f"method must be a method object or a name such as 'criticality', got {found!r}")
    if not isinstance(schedule, Schedule):
        raise InvalidValue(f"schedule must be a schedule such as Cubic(to=0.9, begin=0, ...), got {schedule!r}")
    return found
