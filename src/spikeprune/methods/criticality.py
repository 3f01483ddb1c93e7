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
        regrow: share of the kept weights that is regrown at each mask update. A number r starts at r and decays to 0 at
            the last mask update. Pass `Constant(0.2)` to keep it fixed, as the paper does, or any other schedule.
        unit: what has a score of its own: a "neuron", as in the paper (all weights of a filter share its score), or a
            "synapse".
        curve: "derivative" takes the surrogate's derivative, as the paper argues; it is highest at the threshold.
            "value" takes the surrogate's smooth forward curve, as the authors' unstructured code does; it rises with
            the potential.
        surrogate: name of a curve that replaces the neuron's own in the score: "atan", "sigmoid", "dspike" or
            "dspike-clamped".
        space: "max" or "mean" over positions (unit "neuron").
        normalize: "layer" divides by the layer's mean, so that layers compete on equal terms; None does not.
        batches: number of training steps, up to the mask update, that the statistic is averaged over.
        pick: "top" takes the highest scores; "sample" draws in proportion to them, by the seed.
        candidates: "all" dead weights may return, or only the "new" ones, which this mask update has cut.
        measure: the statistic is measured "before" or "after" the cut of the mask update.
        momentum: "clean" starts regrown weights with an empty optimizer state. "warm", as in the authors' code, lets
            gradients of dead weights flow into that state.
        grace: if True, the next mask update cannot cut regrown weights.
        start_value: where regrown weights start: at "zero"; "kept" spares those that this mask update has cut; "last"
            gives each the value that it had when it was cut.
        rule: "exact" meets the counts exactly; "authors" cuts by the thresholds of their code, mask for mask.
    Raises: InvalidValue or UnknownName for a setting outside this.
    Over several batches every image counts alike; the authors' channel half averages means of batches, so that each
    image of a last, shorter batch counts more.
    Source: Chen et al. 2023, arXiv:2311.16141, and the authors' code; docs/decisions/0004-criticality.md tells where
        the two differ and which we follow.

    Examples:
        >>> method = sp.Criticality(regrow=0.2, unit="synapse")
        >>> pruner = sp.Pruner(model, method, sp.Cubic(to=0.75, begin=0, end=6, every=2))
        >>> pruner.attach(optimizer)
        Pruner(...)
        >>> losses = train(6)
        >>> pruner.alive, pruner.prunable
        (192, 768)
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
