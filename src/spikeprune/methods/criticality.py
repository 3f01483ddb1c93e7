"""Criticality: regrow what feeds neurons that sit near their firing threshold. The flagship."""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from spikeprune.core.evidence import Evidence, Scores
from spikeprune.core.select import draw
from spikeprune.core.statistic import Statistic
from spikeprune.core.surrogate import curve_named
from spikeprune.methods.base import MagnitudeRegrowth, Observation, Regrowth, Site, check_choice
from spikeprune.methods.registry import register


@register("criticality", source="Chen et al. 2023, arXiv:2311.16141")
@final
@dataclass(frozen=True)
class Criticality(MagnitudeRegrowth):
    """Prune by magnitude; regrow the dead weights whose neurons are most critical.

        score        = |w|
        regrow_score = mean_n max_p mean_t curve(v_pre - v_threshold)              (unit "neuron")
                       mean_{t,n,p} curve(v_pre - v_threshold) * presynaptic input  (unit "synapse")

    Args:
        regrow: share of the weights kept that is regrown at each event. A number is the first share of one that
            decays to 0 at the last event; `Constant(0.2)` holds it, as the paper does; any schedule may stand here.
        unit: "neuron", the paper's, all weights of a filter share the score; or "synapse".
        curve: "derivative" of the surrogate, the paper's argument: highest at the threshold; or "value", what the
            authors' unstructured code computes: the surrogate's smooth forward curve, which rises with the potential.
        surrogate: another curve for the score than the neuron's own: "atan", "sigmoid", "dspike", "dspike-clamped".
        space: "max" or "mean" over positions (unit "neuron").
        normalize: None, or "layer": divide by the layer's mean, so that layers compete on equal terms.
        batches: training steps before the event over which the statistic is averaged.
        pick: "top", the highest scores, or "sample", a seeded draw in proportion to them.
        candidates: "all" dead weights, or only those cut in this event ("new").
        measure: "before" or "after" the event's cut.
        momentum: "clean", regrown weights start with an empty optimizer state, or the authors' "warm": gradients of
            dead weights keep flowing into it.
        grace: regrown weights cannot be cut by the next event.
        start_value: of regrown weights: "zero"; "kept", those cut in this very event go on as they were; or "last".
        rule: "exact" counts, or "authors": their thresholds with `>` and `>=`, mask for mask.
    Raises: InvalidValue or UnknownName for a setting outside this.
    Source: Chen et al. 2023, arXiv:2311.16141, and the authors' code; docs/decisions/0004-criticality.md tells where
        the two differ and which we follow.
    """

    unit: str = "neuron"
    curve: str = "derivative"
    surrogate: str | None = None
    space: str = "max"
    normalize: str | None = None
    batches: int = 1
    pick: str = "top"
    measure: str = "before"
    rule: str = "exact"
    needs: ClassVar[frozenset[str]] = frozenset({"weights", "membrane"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("curve", self.curve, ("derivative", "value"))
        check_choice("space", self.space, ("max", "mean"))
        check_choice("normalize", self.normalize, (None, "layer"))
        check_choice("pick", self.pick, ("top", "sample"))
        if self.surrogate is not None:
            curve_named(self.surrogate)

    def regrowth(self) -> Regrowth:
        return dataclasses.replace(super().regrowth(), rule=self.rule)

    def observation(self) -> Observation:
        return Observation(self.unit, self.batches, self.measure)

    def regrow_score(self, evidence: Evidence) -> Scores:
        scores = evidence.per_weight()
        if self.normalize == "layer":
            scores = {name: score / score.mean().clamp_min(1e-12) for name, score in scores.items()}
        return draw(scores, evidence.generator) if self.pick == "sample" else scores

    def statistic(self, layer: Site) -> Statistic:
        def curve(u: Tensor) -> Tensor:
            if self.surrogate is not None:
                other = curve_named(self.surrogate)
                return other.derivative(u) if self.curve == "derivative" else other.value(u)
            return layer.derivative(u) if self.curve == "derivative" else layer.value(u)

        return layer.per_synapse(curve) if self.unit == "synapse" else layer.per_channel(curve, self.space)
