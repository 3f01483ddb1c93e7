"""Regrowth of what feeds the least critical neurons: the control that must lose if criticality means anything."""

from dataclasses import dataclass
from typing import ClassVar, final

from spikeprune.core.evidence import Evidence, Scores
from spikeprune.core.schedule import Schedule
from spikeprune.core.statistic import Statistic
from spikeprune.methods.base import Layer, Method, check_choice, check_regrowth, magnitude
from spikeprune.methods.registry import register


@register("anti-criticality", source="a control of ours: arXiv:2311.16141's score, upside down")
@final
@dataclass(frozen=True)
class AntiCriticality(Method):
    """Prune by magnitude, bring back the dead weights whose neurons are least critical.

    score = |w|,  regrow_score = -(the `criticality` of the weight's neuron or synapse)

    Args:
        unit: "neuron" or "synapse", as for `criticality`.
        curve: "derivative" or "value", as for `criticality`.
        regrow, candidates, momentum, grace, start_value: as for `criticality`.
    """

    regrow: float | Schedule = 0.2
    unit: str = "neuron"
    curve: str = "derivative"
    candidates: str = "all"
    momentum: str = "clean"
    grace: bool = False
    start_value: str = "zero"
    needs: ClassVar[frozenset[str]] = frozenset({"weights", "membrane"})
    regrows: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_regrowth(self.regrow, self.candidates, self.momentum, self.start_value)
        check_choice("unit", self.unit, ("neuron", "synapse"))
        check_choice("curve", self.curve, ("derivative", "value"))

    def score(self, evidence: Evidence) -> Scores:
        return magnitude(evidence)

    def regrow_score(self, evidence: Evidence) -> Scores:
        return {name: -score for name, score in evidence.per_weight().items()}

    def statistic(self, layer: Layer) -> Statistic:
        curve = layer.derivative if self.curve == "derivative" else layer.value
        return layer.per_synapse(curve) if self.unit == "synapse" else layer.per_channel(curve, "max")
