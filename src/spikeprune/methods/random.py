"""Random regrowth: the control that separates a useful score from harmless reshuffling."""

from dataclasses import dataclass
from typing import final

from spikeprune.core.evidence import Evidence, Scores
from spikeprune.methods.base import MagnitudeRegrowth, uniform
from spikeprune.methods.registry import register


@register("random", source="Mocanu et al. 2018, arXiv:1707.04780 (SET), as a regrowth rule")
@final
@dataclass(frozen=True)
class Random(MagnitudeRegrowth):
    """Prune by magnitude, bring back dead weights drawn uniformly.

        score = |w|,  regrow_score ~ U(0, 1)

    Args:
        regrow, candidates, momentum, grace, start_value: as for `criticality`.

    Examples:
        >>> pruner = sp.Pruner(model, sp.Random(regrow=0.3), sp.Cubic(to=0.75, begin=0, end=6, every=2))
        >>> pruner.attach(optimizer)
        Pruner(...)
        >>> losses = train(6)
        >>> pruner.alive, pruner.prunable
        (192, 768)
    """

    def regrow_score(self, evidence: Evidence) -> Scores:
        return uniform(evidence)
