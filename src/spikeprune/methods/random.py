"""Random regrowth: the control that separates a useful score from harmless reshuffling."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch

from spikeprune.core.evidence import Evidence, Scores
from spikeprune.core.schedule import Schedule
from spikeprune.methods.base import Method, check_regrowth
from spikeprune.methods.registry import register


@register("random", source="Mocanu et al. 2018, arXiv:1707.04780 (SET), as a regrowth rule")
@final
@dataclass(frozen=True)
class Random(Method):
    """Prune by magnitude, bring back dead weights drawn uniformly.

    score = |w|,  regrow_score ~ U(0, 1)
    """

    regrow: float | Schedule = 0.2
    candidates: str = "all"
    momentum: str = "clean"
    grace: bool = False
    regrows: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_regrowth(self.regrow, self.candidates, self.momentum)

    def score(self, evidence: Evidence) -> Scores:
        return {name: weight.abs() for name, weight in evidence.weights.items()}

    def regrow_score(self, evidence: Evidence) -> Scores:
        # Drawn on the CPU in one fixed order, so that all devices and ranks agree.
        return {
            name: torch.rand(weight.shape, generator=evidence.generator).to(weight.device)
            for name, weight in evidence.weights.items()
        }
