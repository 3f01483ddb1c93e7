"""Gradient regrowth, the rule of RigL and GraNet."""

from dataclasses import dataclass
from typing import ClassVar, final

from spikeprune.core.evidence import Evidence, Scores
from spikeprune.core.schedule import Schedule
from spikeprune.methods.base import Method, check_regrowth, magnitude
from spikeprune.methods.registry import register


@register("gradient", source="Evci et al. 2020, arXiv:1911.11134 (RigL); Liu et al. 2021, arXiv:2106.10404 (GraNet)")
@final
@dataclass(frozen=True)
class Gradient(Method):
    """Prune by magnitude, bring back the dead weights whose loss gradient is largest.

        score = |w|,  regrow_score = |dL/dw|  of the event's own step

    Args:
        regrow, candidates, momentum, grace, start_value: as for `criticality`.
    """

    regrow: float | Schedule = 0.2
    candidates: str = "all"
    momentum: str = "clean"
    grace: bool = False
    start_value: str = "zero"
    needs: ClassVar[frozenset[str]] = frozenset({"weights", "grads"})
    regrows: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_regrowth(self.regrow, self.candidates, self.momentum, self.start_value)

    def score(self, evidence: Evidence) -> Scores:
        return magnitude(evidence)

    def regrow_score(self, evidence: Evidence) -> Scores:
        return {name: gradient.abs() for name, gradient in evidence.gradients().items()}
