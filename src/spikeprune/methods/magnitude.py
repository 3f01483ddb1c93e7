"""Magnitude pruning: the plain baseline of every table."""

from dataclasses import dataclass
from typing import final

from spikeprune.core.evidence import Evidence, Scores
from spikeprune.methods.base import Method, magnitude
from spikeprune.methods.registry import register


@register("magnitude", source="Zhu and Gupta 2017, arXiv:1710.01878 (GMP); Han et al. 2015, arXiv:1506.02626")
@final
@dataclass(frozen=True)
class Magnitude(Method):
    """Keep the largest absolute weights; bring nothing back.

    score = |w|

    Examples:
        >>> pruner = sp.Pruner(model, sp.Magnitude(), sp.Cubic(to=0.75, begin=0, end=6, every=2))
        >>> pruner.attach(optimizer)
        Pruner(...)
        >>> losses = train(6)
        >>> pruner.alive, pruner.prunable
        (192, 768)
    """

    def score(self, evidence: Evidence) -> Scores:
        return magnitude(evidence)
