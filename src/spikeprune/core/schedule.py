"""Schedules: how much, and when.

A schedule has M = floor((end - begin) / every) mask updates, the n-th at step begin + n * every, and a value for each
that runs from `initial` to `to`. For sparsity the n-th stands at progress n / M, so that the last one meets `to`.
As a regrow share the n-th stands at (n - 1) / (M - 1), so that the first one has `initial`.
"""

import abc
import math
import re
from dataclasses import dataclass, replace
from typing import final

from spikeprune.core.errors import InvalidValue

_MOST = 1_000_000  # mask updates of one schedule


@dataclass(frozen=True)
class MaskUpdate:
    """One mask update: its number n from 1, its optimizer step, its target sparsity, and how many it keeps.

    `kept` counts weights, or channels under a channel pattern; None as long as no forward has shown the channels.
    """

    number: int
    step: int
    target: float
    kept: int | None


@dataclass(frozen=True)
class Schedule(abc.ABC):
    """Abstract: when the mask updates are, and a curve over progress 0..1 that ends at `to`."""

    to: float
    begin: int | None = 0
    end: int | None = None
    every: int | None = None

    def __post_init__(self) -> None:
        _check(self)

    @property
    def first(self) -> float:
        """The value before the first mask update."""
        return self.to

    def since(self, sparsity: float) -> "Schedule":
        """This schedule for a network that has a sparsity s_0 already: s_n = s_0 + (to - s_0) * course, from 0 to 1."""
        return self

    @abc.abstractmethod
    def at(self, progress: float) -> float:
        """The value at a progress between 0 and 1."""

    def steps(self) -> tuple[int, ...]:
        """The optimizer step of each mask update.

        Raises: InvalidValue if `end` or `every` was not given, or no mask update fits in between.
        """
        begin, end, every = self.begin or 0, self.end, self.every
        if end is None or every is None:
            raise InvalidValue(
                f"{type(self).__name__} needs begin, end and every (in optimizer steps) to tell when its mask updates "
                "are; for example Cubic(to=0.9, begin=0, end=2000, every=100)"
            )
        count = (end - begin) // every
        if count < 1:
            raise InvalidValue(
                f"no mask update fits between step {begin} and {end} at one every {every} steps; take a smaller every"
            )
        return tuple(begin + n * every for n in range(1, count + 1))

    def value(self, number: int, count: int) -> float:
        """The sparsity at mask update `number` of `count`."""
        return self.at(number / count)

    def share(self, number: int, count: int, step: int) -> float:
        """The value as a regrow share at mask update `number` of `count`, which happens at `step`.

        With `begin` and `end` of its own the share follows the step and keeps its last value after `end`.
        """
        if self.end is not None:
            begin = self.begin or 0
            return self.at(min(max((step - begin) / max(self.end - begin, 1), 0.0), 1.0))
        return self.at((number - 1) / (count - 1)) if count > 1 else self.at(0.0)


def _is_number(value: object) -> bool:
    """Whether a value is an int or a float. True and False are not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check(schedule: Schedule) -> None:
    for name, value in (("to", schedule.to), ("initial", schedule.first)):
        number = _is_number(value)
        if not number or not 0 <= value < 1:
            hint = f"; for {value} % pass {value / 100:g}" if number and 1 < value < 100 else ""
            raise InvalidValue(f"{name} must be in [0, 1), got {value}{hint or '; for 80 % pass 0.8'}")
    for name in ("begin", "end", "every"):
        _check_steps(name, getattr(schedule, name))
    begin, end, every = schedule.begin or 0, schedule.end, schedule.every
    if begin < 0 or (every is not None and every < 1):
        raise InvalidValue(f"begin must be >= 0 and every >= 1 step, got begin={begin}, every={every}")
    if end is not None and end <= begin:
        raise InvalidValue(f"end must come after begin, got begin={begin}, end={end}; both count optimizer steps")
    if end is not None and every is not None and (end - begin) // every < 1:
        raise InvalidValue(
            f"no mask update fits between step {begin} and {end} at one every {every} steps; make every smaller"
        )
    if end is not None and every is not None and (end - begin) // every > _MOST:
        raise InvalidValue(
            f"{(end - begin) // every:,} mask updates between step {begin} and {end} are more than {_MOST:,}; make "
            "every larger"
        )


def _check_steps(name: str, value: object) -> None:
    """Refuse durations in epochs: only the user's loop knows how many optimizer steps an epoch has."""
    if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool) and value == value // 1):
        return
    said = _DURATION.match(value) if isinstance(value, str) else None
    steps = {"ep": "* len(loader)", "it": "", "turnover": "* turnover_steps(lr, weight_decay, momentum)"}
    hint = f"{said[1]} {steps[said[2]]}".strip() if said else "an int such as 2000; one epoch is len(loader) steps"
    raise InvalidValue(
        f"{name} counts optimizer steps as a whole number, got {str(value)[:40]!r}; in code pass {hint} "
        "(texts such as '1ep' are for recipes)"
    )


@dataclass(frozen=True)
class Rising(Schedule):
    """A schedule whose curve starts at `initial`. Abstract."""

    initial: float = 0.0

    @property
    def first(self) -> float:
        return self.initial

    def since(self, sparsity: float) -> "Schedule":
        return replace(self, initial=sparsity)


@final
@dataclass(frozen=True)
class Cubic(Rising):
    """s(p) = to + (initial - to) * (1 - p)^3: fast at first, gentle towards the end.

    Source: Zhu and Gupta 2017, arXiv:1710.01878, eq. 1.

    Examples:
        >>> schedule = sp.Cubic(to=0.9, begin=0, end=400, every=100)
        >>> schedule.steps()
        (100, 200, 300, 400)
        >>> [round(schedule.value(n, 4), 4) for n in (1, 2, 3, 4)]
        [0.5203, 0.7875, 0.8859, 0.9]
    """

    def at(self, progress: float) -> float:
        return self.to if progress >= 1 else self.to + (self.initial - self.to) * (1 - progress) ** 3


@final
@dataclass(frozen=True)
class Linear(Rising):
    """s(p) = initial + (to - initial) * p.

    Examples:
        >>> [round(sp.Linear(to=0.8).at(p), 2) for p in (0, 0.25, 0.5, 1)]
        [0.0, 0.2, 0.4, 0.8]
    """

    def at(self, progress: float) -> float:
        return self.to if progress >= 1 else self.initial + (self.to - self.initial) * progress


@final
@dataclass(frozen=True)
class Cosine(Rising):
    """s(p) = to + (initial - to) * (1 + cos(pi p)) / 2.

    Examples:
        >>> falling = sp.Cosine(to=0.0, initial=0.2)  # a regrow share
        >>> [round(falling.at(p), 3) for p in (0, 0.5, 1)]
        [0.2, 0.1, 0.0]
    """

    def at(self, progress: float) -> float:
        return self.to if progress >= 1 else self.to + (self.initial - self.to) * (1 + math.cos(math.pi * progress)) / 2


@final
@dataclass(frozen=True)
class Geometric(Rising):
    """1 - s(p) = (1 - initial) * ((1 - to) / (1 - initial))^p: every mask update keeps the same share of what is alive.

    Source: Frankle and Carbin 2019, arXiv:1803.03635 (iterative pruning).

    Examples:
        >>> halves = sp.Geometric(to=0.9375)  # each mask update cuts half of what is alive
        >>> [round(halves.value(n, 4), 4) for n in (1, 2, 3, 4)]
        [0.5, 0.75, 0.875, 0.9375]
    """

    def at(self, progress: float) -> float:
        ratio = (1 - self.to) / (1 - self.initial)
        return self.to if progress >= 1 else 1 - (1 - self.initial) * ratio**progress


@final
@dataclass(frozen=True)
class Constant(Schedule):
    """s(p) = to at every mask update: a fixed sparsity, or a fixed regrow share.

    Examples:
        >>> never_dense = sp.Constant(0.9, begin=0, end=60, every=20)
        >>> [never_dense.value(n, 3) for n in (1, 2, 3)]
        [0.9, 0.9, 0.9]
    """

    @property
    def initial(self) -> float:
        """A constant starts where it ends."""
        return self.to

    def at(self, progress: float) -> float:
        return self.to


@final
@dataclass(frozen=True)
class OneShot(Rising):
    """A single mask update, at step begin + every; `every` is 1 if not given.

    Examples:
        >>> sp.OneShot(0.9, begin=500).steps()
        (501,)
    """

    def steps(self) -> tuple[int, ...]:
        return ((self.begin or 0) + (self.every or 1),)

    def at(self, progress: float) -> float:
        return self.to


@final
@dataclass(frozen=True)
class Until(Rising):
    """s(p) = initial as long as p < until, then to: a regrow share that ends before the last mask updates.

    Args:
        until: the progress, in (0, 1], from which it is `to`.

    Examples:
        >>> share = sp.Until(to=0.0, initial=0.2, until=0.8)
        >>> [share.at(p) for p in (0, 0.7, 0.8, 1)]
        [0.2, 0.2, 0.0, 0.0]
    """

    to: float = 0.0
    initial: float = 0.2
    until: float = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.until <= 1:
            raise InvalidValue(f"until must be a progress in (0, 1], got {self.until}; 0.8 ends at four fifths")

    def at(self, progress: float) -> float:
        return self.initial if progress < self.until else self.to


SCHEDULES: dict[str, type[Schedule]] = {
    "constant": Constant,
    "cosine": Cosine,
    "cubic": Cubic,
    "geometric": Geometric,
    "linear": Linear,
    "oneshot": OneShot,
}


def names() -> list[str]:
    """Sorted names of the schedules.

    Examples:
        >>> sp.schedules()
        ['constant', 'cosine', 'cubic', 'geometric', 'linear', 'oneshot']
    """
    return sorted(SCHEDULES)


def decaying(share: float) -> Cosine | Constant:
    """The default course of a regrow share r: mask update n of M regrows r * (1 + cos(pi (n - 1) / (M - 1))) / 2.

    It ends at 0, because weights that the last mask update regrows are never checked by a later one.
    """
    return Cosine(to=0.0, initial=share) if share else Constant(0.0)


_DURATION = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(ep|it|turnover)\s*$")


def duration(text: str, steps_per_epoch: int, turnover: float | None = None) -> int:
    """'200ep', '2000it' or '0.5turnover' in optimizer steps, rounded to the nearest.

    Args:
        turnover: steps in which a weight turns over (see `turnover_steps`); None if the training has no such time.
    Raises: InvalidValue for anything else, or for a turnover where there is none.
    """
    match = _DURATION.match(text)
    if match is None:
        raise InvalidValue(
            f"a duration reads like '200ep' (epochs), '2000it' (steps) or '0.5turnover' (of a weight), got {text!r}"
        )
    number = float(match[1])
    if match[2] == "turnover":
        if turnover is None:
            raise InvalidValue(f"without weight decay no weight turns over, got {text!r}; give epochs, such as '0.5ep'")
        return round(number * turnover)
    return round(number * steps_per_epoch) if match[2] == "ep" else round(number)


def turnover_steps(lr: float, weight_decay: float, momentum: float = 0.0) -> float | None:
    """Steps in which the weights before a normalisation forget their past: the time scale of regrowth. None if never.

        (1 - momentum) / (2 * lr * weight_decay)

    Weight decay shrinks |w|^2 by e in that time, and updates put new weight in its place. A weight regrown at 0 needs a
    good part of it to become as large as the others; mask updates that come faster cut it before it can.

    Args:
        lr: at the start; a falling learning rate makes the time longer.
        weight_decay: L2 in the gradient, or decoupled (AdamW: lr * weight_decay a step).
        momentum: of SGD, without dampening: it makes the effective learning rate lr / (1 - momentum).
    Source: Wan et al. 2021, arXiv:2006.08419 (equilibrium of normalised weights); the choice as unit of time is ours.
    """
    return (1 - momentum) / (2 * lr * weight_decay) if weight_decay > 0 else None
