"""A method gives a score to each weight. Schedule, allocation and pattern are other parts, which all methods share."""

import abc
import dataclasses
import difflib
import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import ClassVar, final

import torch
from torch import Tensor

from spikeprune.core.errors import InvalidValue
from spikeprune.core.evidence import Evidence, Scores
from spikeprune.core.schedule import Constant, Schedule, decaying
from spikeprune.core.statistic import Statistic, SynapseMean


class Site(abc.ABC):
    """A weight layer and the neuron it feeds: what a method's statistic may use there."""

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
    def per_synapse(self, curve: Callable[[Tensor], Tensor]) -> SynapseMean:
        """A statistic with one number per weight."""

    @abc.abstractmethod
    def per_trace(self, decay: float) -> Statistic:
        """A statistic of the traces of spikes before and behind the layer, [C, inputs + 1]: see `TraceProducts`."""


Memory = dict[str, dict[str, Tensor]]  # what a method keeps from step to step: kind -> name -> tensor


@dataclass(frozen=True)
class Training:
    """The training around a step, as a method sees it that does more than score.

    Attributes:
        weights: parameter name -> its values, to be changed in place.
        grads: parameter name -> its gradient, that of dead weights included, to be changed in place; only before the
            update.
        masks: parameter name -> bool, the present masks.
        memory: the method's own, empty at first; saved with the Pruner, dropped after the last mask update.
        rates: parameter name -> learning rate of this step.
        decays: parameter name -> the optimizer's weight decay.
        decoupled: whether the optimizer shrinks weights by rate * decay apart from the gradient, as AdamW does.
        start: parameter name -> weights that a rewind goes back to; empty for a method that does not rewind.
        seed: of the draws of this step, the same on every rank.
        progress: share of the steps up to the last mask update that this step completes, in (0, 1].
        sparsity: the final one.
        select: gives the masks that keep the highest scores, at the exact sparsity of this mask update; between mask
            updates, at that of the last one.
    """

    weights: Mapping[str, Tensor]
    grads: Mapping[str, Tensor]
    masks: Mapping[str, Tensor]
    memory: Memory
    rates: Mapping[str, float]
    progress: float
    sparsity: float
    select: Callable[[Scores], Mapping[str, Tensor]]
    decays: Mapping[str, float] = field(default_factory=dict[str, float])
    decoupled: bool = False
    start: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    seed: int = 0


@final
@dataclass(frozen=True)
class Regrowth:
    """How a method brings dead weights back. A method makes one of its settings, in `Method.regrowth`.

    Attributes:
        regrow: share of the weights kept that is regrown: a number in [0, 1), which decays to 0 at the last mask
            update, or a schedule.
        candidates: "all" dead weights, or "new": those cut in this mask update.
        momentum: "clean", regrown weights start with an empty optimizer state, or "warm": gradients of dead weights
            flow into it.
        grace: regrown weights cannot be cut by the next mask update.
        start_value: of regrown weights: "zero"; "kept", which spares those cut in this very mask update, value and
            optimizer state; or "last", the value each had when it was cut, however long ago.
        cut_forgets: "kept" spares what the exchange within layers dropped, and not what the cut to the target took.
        rule: "exact" counts, or "authors": the thresholds of arXiv:2311.16141's code, which `criticality` knows.
    Raises: InvalidValue naming the setting.
    """

    regrow: float | Schedule
    candidates: str = "all"
    momentum: str = "clean"
    grace: bool = False
    start_value: str = "zero"
    rule: str = "exact"
    cut_forgets: bool = False

    def __post_init__(self) -> None:
        regrow = self.regrow
        if not isinstance(regrow, Schedule) and not (is_number(regrow) and 0 <= regrow < 1):
            raise InvalidValue(
                f"regrow must be in [0, 1), a share of the weights kept, got {regrow}; for 20 % pass 0.2"
            )
        check_choice("candidates", self.candidates, ("all", "new"))
        check_choice("momentum", self.momentum, ("clean", "warm"))
        check_choice("start_value", self.start_value, ("zero", "kept", "last"))
        check_choice("rule", self.rule, ("exact", "authors"))

    @property
    def share(self) -> Schedule:
        """The share as a schedule: a number r starts at r and decays to 0, a schedule stands as it is."""
        return self.regrow if isinstance(self.regrow, Schedule) else decaying(self.regrow)

    @property
    def clean(self) -> bool:
        """Whether gradients of dead weights are kept out of the optimizer's state."""
        return self.momentum == "clean" and self.rule == "exact"


@final
@dataclass(frozen=True)
class Observation:
    """How a method's statistic is recorded. A method makes one of its settings, in `Method.observation`.

    Attributes:
        unit: what has a number of its own: a "neuron" (an output channel of a layer) or a "synapse".
        batches: training steps, up to the mask update, that the statistic is averaged over.
        measure: "before" the cut of the mask update, or "after" it.
        whole: whether it is recorded in all steps since the first, `batches` or not, and goes on after a mask update.
    Raises: InvalidValue naming the setting.
    """

    unit: str = "neuron"
    batches: int = 1
    measure: str = "before"
    whole: bool = False

    def __post_init__(self) -> None:
        check_choice("unit", self.unit, ("neuron", "synapse"))
        check_choice("measure", self.measure, ("before", "after"))
        if self.whole and self.measure == "after":
            raise InvalidValue("whole=True goes on from step to step, so it takes measure='before', got 'after'")
        if not (is_number(self.batches, whole=True) and self.batches >= 1):
            raise InvalidValue(f"batches must be 1 or more training steps, got {self.batches}")


# Settings that the Pruner follows: a method hands them over in a Regrowth or an Observation.
SHARED_SETTINGS = tuple(field.name for cls in (Regrowth, Observation) for field in dataclasses.fields(cls))


class Method(abc.ABC):
    """Abstract: the interface, no fields. A method is a frozen dataclass whose fields are its settings.

    Class attributes:
        needs: what it must be shown: any of "weights", "grads", "membrane", "spikes", "state", "survivors", "flow",
            "curvature".
        prunes: whether it cuts at all; the dense run does not.
        regrows: whether it brings pruned weights back; then `regrowth` tells how.
        within_layers: whether each layer gets back what it lost (`survivors`, `growth`); else all layers compete.
        channels: whether it scores whole channels, and so takes a channel pattern only.
        acts: whether it takes part in every step up to the last mask update (`before_update`, `after_update`). Its
            masks may then follow from the weights, and only its last mask update fixes them.
        sees_gradients: whether it must be asked before every update (`before_update`), and not only after it.
        rewinds: whether a cut sends all parameters and buffers back to what they were at the schedule's `begin`, with
            an empty optimizer state: "never", at "each" mask update, or "once".

    A name that is close to one of these, but not equal, is refused when the class is made: it would never be asked.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"weights"})
    prunes: ClassVar[bool] = True
    regrows: ClassVar[bool] = False
    within_layers: ClassVar[bool] = False
    channels: ClassVar[bool] = False
    acts: ClassVar[bool] = False
    sees_gradients: ClassVar[bool] = False
    rewinds: ClassVar[str] = "never"

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        _check_names(cls)

    @abc.abstractmethod
    def score(self, evidence: Evidence) -> Scores:
        """The score of each prunable weight, by name. Weights with a higher score are kept."""

    def regrowth(self) -> Regrowth:
        """The rule of regrowth, built from the method's settings. It is called only if `regrows` is True."""
        raise InvalidValue(
            f"{type(self).__name__} regrows, but does not say how: give it a method `regrowth` that returns "
            "Regrowth(self.regrow, ...), from spikeprune.methods.base"
        )

    def observation(self) -> Observation:
        """How the method's statistic is recorded, built from its settings."""
        return Observation()

    def regrow_score(self, evidence: Evidence) -> Scores:
        """The score of each dead weight that may be brought back, by name; higher = regrow first."""
        return {}

    def cuts_per_update(self) -> int:
        """The number of cuts in which a mask update reaches its sparsity. Each of them ranks the weights that are left.

        The densities fall by the same factor from cut to cut: d_k = d_0 * (d_n / d_0)^(k / n), rounded up to a weight.
        """
        return 1

    def softening(self) -> float:
        """The number that outputs are divided by before the loss; only asked if `needs` names "curvature"."""
        return 1.0

    def survivors(self, kept: int, alive: int, share: float) -> int:
        """How many of a layer's weights the cut leaves, if `within_layers`.

        Args:
            kept: number of the layer's weights that are alive after this mask update, with those it regrows.
            alive: number of the layer's weights that are alive before it.
            share: share of `kept` that is regrown.
        """
        return kept - int(share * kept)

    def growth(self, evidence: Evidence) -> Mapping[str, float] | None:
        """Name -> the layer's share of all regrown weights, if `within_layers`.

        None: each layer regrows as many as it lost.
        """
        return None

    def before_update(self, training: Training) -> None:
        """Called before the optimizer's update of a step if `sees_gradients`; it may change gradients."""
        return

    def after_update(self, training: Training) -> Mapping[str, Tensor] | None:
        """Called after the update if `acts`; it may change weights. Returns new masks, or None to leave them."""
        return None

    def at_event(self, training: Training) -> bool:
        """Called at a mask update: whether it cuts. If not, the masks stay and only the record shows the update."""
        return True

    def remember(self, evidence: Evidence) -> Memory | None:
        """Returns the method's memory from this mask update on; called before `score`. None leaves it as it is."""
        return None

    def statistic(self, layer: Site) -> Statistic:
        """The statistic recorded at a layer's neuron. It is asked only if `needs` names "membrane" or "spikes"."""
        raise InvalidValue(
            f"{type(self).__name__} names 'membrane' or 'spikes' in its `needs`, but does not say what is recorded; "
            "define statistic(layer), for example: return layer.per_channel(layer.derivative, 'mean')"
        )


def check_declared(method: Method) -> None:
    """Whether the shared settings that a method has as fields are those that it hands over.

    Raises: InvalidValue naming the field that nobody would read, or the method that nobody would call.
    """
    _check_called(method)
    if method.cuts_per_update() > 1 and (method.regrows or method.acts):
        raise InvalidValue(
            f"{type(method).__name__} takes {method.cuts_per_update()} cuts per mask update, which goes with methods "
            "that neither regrow nor act; let cuts_per_update return 1"
        )
    handed = dataclasses.asdict(method.observation())
    if method.regrows:
        regrowth = method.regrowth()
        handed |= {field.name: getattr(regrowth, field.name) for field in dataclasses.fields(regrowth)}
    for name, value in vars(method).items():
        if name in SHARED_SETTINGS and (name not in handed or handed[name] != value):
            maker = "observation" if name in {f.name for f in dataclasses.fields(Observation)} else "regrowth"
            raise InvalidValue(
                f"{type(method).__name__} has the setting {name!r} but does not hand it over, so it would change "
                f"nothing; pass it on in its method `{maker}`" + ("" if method.regrows else ", or set regrows = True")
            )


# Name of a method -> whether it is ever called, and the declaration that makes it so.
_CALLED: dict[str, tuple[Callable[[Method], bool], str]] = {
    "regrow_score": (lambda m: m.regrows, "regrows = True"),
    "regrowth": (lambda m: m.regrows, "regrows = True"),
    "survivors": (lambda m: m.within_layers, "within_layers = True"),
    "growth": (lambda m: m.within_layers, "within_layers = True"),
    "before_update": (lambda m: m.acts, "acts = True"),
    "after_update": (lambda m: m.acts, "acts = True"),
    "softening": (lambda m: "curvature" in m.needs, "needs = frozenset({'weights', 'curvature'})"),
    "statistic": (lambda m: bool(m.needs & {"membrane", "spikes"}), "needs = frozenset({'weights', 'membrane'})"),
}


def _check_called(method: Method) -> None:
    """Raises: InvalidValue if a class overrides a method that would never be called."""
    for name, (called, declaration) in _CALLED.items():
        if name in vars(type(method)) and not called(method):
            raise InvalidValue(
                f"{type(method).__name__} has its own {name}, which would never be called: declare {declaration} in "
                "the class, or leave it out"
            )


def _check_names(cls: type[Method]) -> None:
    """Raises: InvalidValue if a class has a name that is nearly, but not quite, one that is asked for."""
    known = {name for name in vars(Method) if not name.startswith("_")}
    fields = inspect.get_annotations(cls)
    for name in [n for n in dict.fromkeys([*vars(cls), *fields]) if not n.startswith("_")]:
        if name in ("defaults", "schedule", "early_time"):
            raise InvalidValue(
                f"{cls.__name__}.{name} belongs to recipes: give it to @register(..., recipe=RecipeHints(...)), from "
                "spikeprune.methods.registry"
            )
        if name in known:
            continue
        if name in SHARED_SETTINGS:
            if "ClassVar" in str(fields.get(name, "ClassVar")):
                raise InvalidValue(
                    f"{cls.__name__}.{name} is no field, so it would change nothing; return it in `regrowth` or "
                    "`observation`, or make it a field and pass it on there"
                )
            continue
        near = difflib.get_close_matches(name, [*known, *SHARED_SETTINGS], n=1, cutoff=0.8)
        if near:
            raise InvalidValue(
                f"{cls.__name__}.{name} would never be asked for; did you mean {near[0]!r}? If not, choose a name that "
                "is less like it, or begin it with an underscore"
            )


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
    """The method's regrow share as a schedule; 0 throughout for a method that does not regrow."""
    return method.regrowth().share if method.regrows else Constant(0.0)


@dataclass(frozen=True)
class MagnitudeRegrowth(Method):
    """Abstract: prune by magnitude and bring back by `regrow_score`, with the settings that such methods share.

    The one class with fields that others build on: only so do type checkers and the command line see five settings
    that stand once (docs/decisions/0012-declared-methods.md).
    """

    regrow: float | Schedule = 0.2
    _: KW_ONLY
    candidates: str = "all"
    momentum: str = "clean"
    grace: bool = False
    start_value: str = "zero"
    regrows: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self.regrowth()
        self.observation()

    def score(self, evidence: Evidence) -> Scores:
        return magnitude(evidence)

    @abc.abstractmethod
    def regrow_score(self, evidence: Evidence) -> Scores:
        """The score of each dead weight that may be brought back, by name; higher = regrow first."""

    def regrowth(self) -> Regrowth:
        return Regrowth(self.regrow, self.candidates, self.momentum, self.grace, self.start_value)


def __getattr__(name: str) -> type[Site]:
    if name == "Layer":
        warnings.warn("methods.base.Layer is now Site; the old name goes away in version 0.3", DeprecationWarning, 2)
        return Site
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
