"""What a method is: a score per weight. How much, where and in which pattern are other parts, shared by all methods."""

import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
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
    def spikes(self, u: Tensor) -> Tensor:
        """1 where the neuron fires at u, else 0."""

    @abc.abstractmethod
    def potential(self, u: Tensor) -> Tensor:
        """v_pre = u + v_threshold."""

    @abc.abstractmethod
    def per_channel(self, curve: Callable[[Tensor], Tensor], space: str) -> Statistic:
        """A statistic with one number per output channel."""

    @abc.abstractmethod
    def per_synapse(self, curve: Callable[[Tensor], Tensor]) -> Statistic:
        """A statistic with one number per weight."""


Memory = dict[str, dict[str, Tensor]]  # what a method keeps from step to step: kind -> name -> tensor


@dataclass(frozen=True)
class Training:
    """The training around a step, as a method sees it that does more than score.

    Attributes:
        weights: parameter name -> its values, to be changed in place.
        grads: parameter name -> its gradient, that of dead weights included, to be changed in place; only before the
            update.
        masks: parameter name -> bool, the present masks.
        memory: the method's own, empty at first; saved with the Pruner, dropped after the last event.
        rates: parameter name -> learning rate of this step.
        progress: share of the steps up to the last event that this step completes, in (0, 1].
        sparsity: the final one.
        select: what scores would keep, exactly, at the sparsity of this event, or of the last one before this step.
    """

    weights: Mapping[str, Tensor]
    grads: Mapping[str, Tensor]
    masks: Mapping[str, Tensor]
    memory: Memory
    rates: Mapping[str, float]
    progress: float
    sparsity: float
    select: Callable[[Scores], Mapping[str, Tensor]]


class Method(abc.ABC):
    """Abstract: the interface, no fields. A method is a frozen dataclass whose fields are its settings.

    Class attributes:
        needs: what it must be shown: any of "weights", "grads", "membrane", "spikes", "state".
        regrows: whether it brings pruned weights back; then it has the field `regrow` (a share of the weights kept),
            and may have `candidates` ("all" dead weights or those cut in this event: "new"), `momentum` ("clean" or the
            authors' "warm": gradients of dead weights flow into the optimizer's state), `grace` (regrown weights cannot
            be cut by the next event) and `start_value` (what regrown weights start with, see `check_regrowth`).
        within_layers: whether each layer gets back what it lost (`survivors`, `growth`); else all layers compete.
        channels: whether it scores whole channels, and so takes a channel pattern only.
        acts: whether it takes part in every step up to the last event (`before_update`, `after_update`). Its masks
            may then follow from the weights, and only its last event fixes them.
        rewinds: whether a cut sends all parameters and buffers back to what they were at the schedule's `begin`, with
            an empty optimizer state: "never", at "each" event, or "once".
        early_time: whether a run takes fewer time steps up to the last cut; then it has the field `search_T`.
        defaults: keys of a recipe that this method sets unless the user does, such as {"start": "random"}.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"weights"})
    regrows: ClassVar[bool] = False
    within_layers: ClassVar[bool] = False
    channels: ClassVar[bool] = False
    acts: ClassVar[bool] = False
    rewinds: ClassVar[str] = "never"
    early_time: ClassVar[bool] = False
    defaults: ClassVar[Mapping[str, Any]] = {}

    @abc.abstractmethod
    def score(self, evidence: Evidence) -> Scores:
        """What to keep: name -> scores of every prunable weight, higher = keep."""

    def regrow_score(self, evidence: Evidence) -> Scores:
        """What to bring back: name -> scores, for the layers that may regrow."""
        return {}

    def survivors(self, kept: int, alive: int, share: float) -> int:
        """How many of a layer's weights the cut leaves, if `within_layers`.

        Args:
            kept: of the layer after this event, regrown included.
            alive: before it.
        """
        return kept - int(share * kept)

    def growth(self, evidence: Evidence) -> Mapping[str, float] | None:
        """Name -> the layer's part of all that is regrown, if `within_layers`; None gives each what it lost."""
        return None

    def schedule(self, sparsity: float, steps: int, per_epoch: int) -> Schedule | None:
        """When a run of so many steps has its events, if that is the method's to say and not the recipe's."""
        return None

    def before_update(self, training: Training) -> None:
        """Before the optimizer's update of a step, if `acts`: may change gradients."""
        return

    def after_update(self, training: Training) -> Mapping[str, Tensor] | None:
        """After the update, if `acts`: may change weights. Returns the masks that follow from them, if they do."""
        return None

    def at_event(self, training: Training) -> bool:
        """At an event: whether it cuts. If not, it leaves the masks alone and only appears in the record."""
        return True

    def statistic(self, layer: Layer) -> Statistic:
        """What to record at a layer's neuron; only asked if `needs` names "membrane" or "spikes"."""
        raise InvalidValue(f"{type(self).__name__} records no statistic")


def check_regrowth(
    regrow: float | Schedule, candidates: str = "all", momentum: str = "clean", start_value: str = "zero"
) -> None:
    """Checks the settings that regrowing methods share.

    Args:
        regrow: share of the weights kept; a number in [0, 1) or a schedule.
        candidates: "all" dead weights, or "new": those cut in this event.
        momentum: "clean" or "warm" optimizer state of regrown weights.
        start_value: of regrown weights: "zero"; "kept", which spares those cut in this very event, value and optimizer
            state; or "last", the value each had when it was cut, however long ago.

    Raises: InvalidValue naming the setting.
    """
    if not isinstance(regrow, Schedule) and (isinstance(regrow, bool) or not 0 <= regrow < 1):
        raise InvalidValue(f"regrow must be in [0, 1), a share of the weights kept, got {regrow}; for 20 % pass 0.2")
    check_choice("candidates", candidates, ("all", "new"))
    check_choice("momentum", momentum, ("clean", "warm"))
    check_choice("start_value", start_value, ("zero", "kept", "last"))


def is_number(value: object, *, whole: bool = False) -> bool:
    """Whether a setting, which may come from a file, is a number."""
    return isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)


def check_choice(setting: str, value: object, allowed: tuple[str | None, ...]) -> None:
    """Raises: InvalidValue if `value` is not one of `allowed`."""
    if value not in allowed:
        raise InvalidValue(f"{setting} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def magnitude(evidence: Evidence) -> Scores:
    """|w| of every weight."""
    return {name: weight.abs() for name, weight in evidence.weights.items()}


def uniform(evidence: Evidence) -> Scores:
    """A draw from U(0, 1) for every weight, on the CPU in one fixed order, so that all devices and ranks agree."""
    return {
        name: torch.rand(weight.shape, generator=evidence.generator).to(weight.device)
        for name, weight in evidence.weights.items()
    }


def regrow_schedule(method: Method) -> Schedule:
    """The method's regrow share as a schedule: a number r starts at r and decays to 0, a schedule stands as it is."""
    if not method.regrows:
        return Constant(0.0)
    regrow: float | Schedule = method.regrow  # type: ignore[attr-defined]
    return regrow if isinstance(regrow, Schedule) else decaying(regrow)
