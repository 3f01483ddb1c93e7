"""Regrowth of what feeds the least critical neurons: the control that must lose if criticality means anything."""

from dataclasses import dataclass
from typing import ClassVar, final

from spikeprune.core.evidence import Evidence, Scores
from spikeprune.core.statistic import Statistic
from spikeprune.methods.base import MagnitudeRegrowth, Observation, Site, check_choice
from spikeprune.methods.registry import register


@register("anti-criticality", source="a control of ours: arXiv:2311.16141's score, upside down")
@final
@dataclass(frozen=True)
class AntiCriticality(MagnitudeRegrowth):
    """Prune by magnitude, bring back the dead weights whose neurons are least critical.

    score = |w|,  regrow_score = -(the `criticality` of the weight's neuron or synapse)

    Args:
        unit: "neuron" or "synapse", as for `criticality`.
        curve: "derivative" or "value", as for `criticality`.
        regrow, candidates, momentum, grace, start_value: as for `criticality`.

    Examples:
        >>> pruner = sp.Pruner(model, sp.AntiCriticality(regrow=0.3), sp.Cubic(to=0.75, begin=0, end=6, every=2))
        >>> pruner.attach(optimizer)
        Pruner(...)
        >>> losses = train(6)
        >>> pruner.alive, pruner.prunable
        (192, 768)
    """

    unit: str = "neuron"
    curve: str = "derivative"
    needs: ClassVar[frozenset[str]] = frozenset({"weights", "membrane"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("curve", self.curve, ("derivative", "value"))

    def observation(self) -> Observation:
        return Observation(self.unit)

    def regrow_score(self, evidence: Evidence) -> Scores:
        return {name: -score for name, score in evidence.per_weight().items()}

    def statistic(self, layer: Site) -> Statistic:
        curve = layer.derivative if self.curve == "derivative" else layer.value
        return layer.per_synapse(curve) if self.unit == "synapse" else layer.per_channel(curve, "max")
