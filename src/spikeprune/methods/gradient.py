"""Gradient regrowth, the rule of RigL and GraNet."""

from dataclasses import dataclass
from typing import ClassVar, final

from spikeprune.core.evidence import Evidence, Scores
from spikeprune.methods.base import MagnitudeRegrowth
from spikeprune.methods.registry import register


@register("gradient", source="Evci et al. 2020, arXiv:1911.11134 (RigL); Liu et al. 2021, arXiv:2106.10404 (GraNet)")
@final
@dataclass(frozen=True)
class Gradient(MagnitudeRegrowth):
    """Prune by magnitude, bring back the dead weights whose loss gradient is largest.

        score = |w|,  regrow_score = |dL/dw|  of the mask update's own step

    Args:
        regrow, candidates, momentum, grace, start_value: as for `criticality`.

    Examples:
        >>> pruner = sp.Pruner(model, sp.Gradient(regrow=0.3), sp.Cubic(to=0.75, begin=0, end=6, every=2))
        >>> pruner.attach(optimizer)
        Pruner(...)
        >>> losses = train(6)
        >>> pruner.alive, pruner.prunable
        (192, 768)
    """

    needs: ClassVar[frozenset[str]] = frozenset({"weights", "grads"})

    def regrow_score(self, evidence: Evidence) -> Scores:
        return {name: gradient.abs() for name, gradient in evidence.gradients().items()}
