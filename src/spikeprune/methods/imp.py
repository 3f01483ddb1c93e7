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

    A run of E epochs holds k cuts and k + 1 trainings, each with a learning rate schedule of its own; the last training
    gives the result. So E is the whole cost, and rounds are short at equal budget. `--epochs 3380` at 95 % is the
    authors' budget for 11 cuts (300 + 11 * 280). After a cut all parameters and BatchNorm's running statistics go back
    to the rewind point (20 epochs where a round has 280), and the optimizer state is empty.

    Args:
        rate: share of the alive weights that a round cuts; the rounds are made equal so that the last one meets the
            sparsity exactly.
    Source: Kim et al. 2022, arXiv:2207.01382, and their code (which leaves running statistics as they are, and freezes
        weights below 1e-6 rather than by mask); Frankle et al. 2020, arXiv:1903.01611, for rewinding.

    Examples:
        >>> pruner = sp.Pruner(model, sp.Imp(), sp.Cubic(to=0.75, begin=0, end=6, every=2))
        >>> pruner.attach(optimizer)
        Pruner(...)
        >>> losses = train(6)
        >>> pruner.alive, pruner.prunable
        (192, 768)
    """

    rate: float = 0.25
    rewinds: ClassVar[str] = "each"

    def __post_init__(self) -> None:
        lottery.check_rate(self.rate)

    def score(self, evidence: Evidence) -> Scores:
        return magnitude(evidence)
