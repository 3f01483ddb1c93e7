"""Random regrowth: the control that separates a useful score from harmless reshuffling."""

from dataclasses import dataclass
from typing import ClassVar, final

from spikeprune.core.evidence import Evidence, Scores
from spikeprune.core.schedule import Schedule
from spikeprune.methods.base import Method, check_regrowth, magnitude, uniform
from spikeprune.methods.registry import register


@register("random", source="Mocanu et al. 2018, arXiv:1707.04780 (SET), as a regrowth rule")
@final
@dataclass(frozen=True)
class Random(Method):
    """Prune by magnitude, bring back dead weights drawn uniformly.

        score = |w|,  regrow_score ~ U(0, 1)

    Args:
        regrow, candidates, momentum, grace, start_value: as for `criticality`.
    """

    regrow: float | Schedule = 0.2
    candidates: str = "all"
    momentum: str = "clean"
    grace: bool = False
    start_value: str = "zero"
    regrows: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_regrowth(self.regrow, self.candidates, self.momentum, self.start_value)

    def score(self, evidence: Evidence) -> Scores:
        return magnitude(evidence)

    def regrow_score(self, evidence: Evidence) -> Scores:
        return uniform(evidence)
