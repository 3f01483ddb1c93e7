"""What a method is: a score per weight. How much, where and in which pattern are other parts, shared by all methods."""

import abc
from collections.abc import Callable
from typing import ClassVar

from torch import Tensor

from spikeprune.core.errors import InvalidValue
from spikeprune.core.evidence import Evidence, Scores
from spikeprune.core.schedule import Constant, Schedule, decaying
from spikeprune.core.statistic import Statistic


class Layer(abc.ABC):
    """What a method's statistic may use of the layer it is made for."""

    @abc.abstractmethod
    def derivative(self, u: Tensor) -> Tensor:
        """The neuron's own surrogate derivative at u = v_pre - v_threshold."""

    @abc.abstractmethod
    def value(self, u: Tensor) -> Tensor:
        """The neuron's own smooth forward curve at u."""

    @abc.abstractmethod
    def per_channel(self, curve: Callable[[Tensor], Tensor], space: str) -> Statistic:
        """A statistic with one number per output channel."""

    @abc.abstractmethod
    def per_synapse(self, curve: Callable[[Tensor], Tensor]) -> Statistic:
        """A statistic with one number per weight."""


class Method(abc.ABC):
    """Abstract: the interface, no fields. A method is a frozen dataclass whose fields are its settings.

    Class attributes:
        needs: what it must be shown: any of "weights", "grads", "membrane", "spikes", "state".
        regrows: whether it brings pruned weights back; then it has the fields `regrow` (a share of the weights kept),
            `candidates` ("all" dead weights or those cut in this event: "new"), `momentum` ("clean" or the authors'
            "warm") and `grace` (regrown weights cannot be cut by the next event).
    """

    needs: ClassVar[frozenset[str]] = frozenset({"weights"})
    regrows: ClassVar[bool] = False

    @abc.abstractmethod
    def score(self, evidence: Evidence) -> Scores:
        """What to keep: name -> scores of every prunable weight, higher = keep."""

    def regrow_score(self, evidence: Evidence) -> Scores:
        """What to bring back: name -> scores, for the layers that may regrow."""
        return {}

    def statistic(self, layer: Layer) -> Statistic:
        """What to record at a layer's neuron; only asked if `needs` names "membrane" or "spikes"."""
        raise InvalidValue(f"{type(self).__name__} records no statistic")


def check_regrowth(regrow: float | Schedule, candidates: str, momentum: str) -> None:
    """Checks the settings that regrowing methods share.

    Raises: InvalidValue naming the setting.
    """
    if not isinstance(regrow, Schedule) and (isinstance(regrow, bool) or not 0 <= regrow < 1):
        raise InvalidValue(f"regrow must be in [0, 1), a share of the weights kept, got {regrow}; for 20 % pass 0.2")
    check_choice("candidates", candidates, ("all", "new"))
    check_choice("momentum", momentum, ("clean", "warm"))


def check_choice(setting: str, value: object, allowed: tuple[str | None, ...]) -> None:
    """Raises: InvalidValue if `value` is not one of `allowed`."""
    if value not in allowed:
        raise InvalidValue(f"{setting} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def regrow_schedule(method: Method) -> Schedule:
    """The method's regrow share as a schedule: a number r starts at r and decays to 0, a schedule stands as it is."""
    if not method.regrows:
        return Constant(0.0)
    regrow: float | Schedule = method.regrow  # type: ignore[attr-defined]
    return regrow if isinstance(regrow, Schedule) else decaying(regrow)
