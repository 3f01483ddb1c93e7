"""IMP: the lottery ticket, found by training, pruning and rewinding again and again."""

from dataclasses import dataclass
from typing import ClassVar, final

from spikeprune.core.evidence import Evidence, Scores
from spikeprune.methods.base import Method, magnitude
from spikeprune.methods.registry import register
from spikeprune.methods.shared import lottery


@register(
    "imp", source="Kim et al. 2022, arXiv:2207.01382; Frankle et al. 2020, arXiv:1903.01611", recipe=lottery.ROUNDS
)
@final
@dataclass(frozen=True)
class Imp(Method):
    """Train, cut a share of the alive weights by |w| over all layers, go back to early training, and so on.

    A run of E epochs holds all of it: k prunings, and k + 1 trainings of which the last one gives the result, each with
    its own course of the learning rate. So E is the whole cost: at equal budget rounds are short; `--epochs 3380` at
    95 % is the authors' budget of 11 prunings (300 + 11 * 280). After a pruning all parameters and BatchNorm's running
    statistics are those of the rewind point (20 epochs where a round has 280), optimizer state is empty.

    Args:
        rate: share of the alive weights that a round cuts; the rounds are made equal so that the last one meets the
            sparsity exactly.
    Source: Kim et al. 2022, arXiv:2207.01382, and their code (which leaves running statistics as they are, and freezes
        weights below 1e-6 rather than by mask); Frankle et al. 2020, arXiv:1903.01611, for rewinding.
    """

    rate: float = 0.25
    rewinds: ClassVar[str] = "each"

    def __post_init__(self) -> None:
        lottery.check_rate(self.rate)

    def score(self, evidence: Evidence) -> Scores:
        return magnitude(evidence)
