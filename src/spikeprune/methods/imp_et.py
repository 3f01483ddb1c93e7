"""IMP with Early-Time: the rounds of the search run over fewer time steps."""

from dataclasses import dataclass
from typing import ClassVar, final

from spikeprune.core.evidence import Evidence, Scores
from spikeprune.methods.base import Method, magnitude
from spikeprune.methods.registry import register
from spikeprune.methods.shared import lottery


@register("imp-et", source="Kim et al. 2022, arXiv:2207.01382 (IMP with Early-Time)", recipe=lottery.ROUNDS_EARLY_TIME)
@final
@dataclass(frozen=True)
class ImpEt(Method):
    """`imp`, whose rounds but the last are trained with fewer time steps. The cost counts MACs times time steps.

    Args:
        rate: share of the alive weights that a round cuts, as for `imp`.
        search_T: time steps of the search; None lets the network choose: after two epochs, the smallest number whose
            answers on a batch are near those of all T (`spikeprune.lab.train.early_time`).
    Source: Kim et al. 2022, arXiv:2207.01382, and their code, whose choice of time steps this equals on the same
        answers (tests/authors/early_time.py). Theirs looks at 1,000 images; here at one batch.

    Examples:
        >>> pruner = sp.Pruner(model, sp.ImpEt(), sp.Cubic(to=0.75, begin=0, end=6, every=2))
        >>> pruner.attach(optimizer)
        Pruner(...)
        >>> losses = train(6)
        >>> pruner.alive, pruner.prunable
        (192, 768)
    """

    rate: float = 0.25
    search_T: int | None = None
    rewinds: ClassVar[str] = "each"

    def __post_init__(self) -> None:
        lottery.check_rate(self.rate)
        lottery.check_search_T(self.search_T)

    def score(self, evidence: Evidence) -> Scores:
        return magnitude(evidence)
