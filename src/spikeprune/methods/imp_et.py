"""IMP with Early-Time: the rounds of the search run over fewer time steps."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

from spikeprune.core.evidence import Evidence, Scores
from spikeprune.core.schedule import Schedule
from spikeprune.methods import lottery
from spikeprune.methods.base import Method, magnitude
from spikeprune.methods.registry import register


@register("imp-et", source="Kim et al. 2022, arXiv:2207.01382 (IMP with Early-Time)")
@final
@dataclass(frozen=True)
class ImpEt(Method):
    """`imp`, whose rounds but the last are trained with fewer time steps. The cost counts MACs times time steps.

    Args:
        rate: share of the alive weights that a round cuts, as for `imp`.
        search_T: time steps of the search; None lets the network choose: after two epochs, the smallest number whose
            answers on a batch are near those of all T (`spikeprune.lab.train.early_time`).
    Source: Kim et al. 2022, arXiv:2207.01382, and their code, which chooses on 1,000 images; here on one batch.
    """

    rate: float = 0.25
    search_T: int | None = None
    rewinds: ClassVar[str] = "each"
    early_time: ClassVar[bool] = True
    defaults: ClassVar[Mapping[str, Any]] = {"start": "dense", "allocate": "global"}

    def __post_init__(self) -> None:
        lottery.check_rate(self.rate)
        lottery.check_search_T(self.search_T)

    def score(self, evidence: Evidence) -> Scores:
        return magnitude(evidence)

    def schedule(self, sparsity: float, steps: int, per_epoch: int) -> Schedule:
        return lottery.rounds(sparsity, steps, self.rate)
