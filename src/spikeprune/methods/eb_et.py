"""Early-Bird with Early-Time: the search runs over fewer time steps."""

from dataclasses import dataclass
from typing import ClassVar, final

from spikeprune.core.evidence import Evidence, Scores
from spikeprune.methods.base import Method, Training, magnitude
from spikeprune.methods.registry import register
from spikeprune.methods.shared import lottery


@register(
    "eb-et", source="Kim et al. 2022, arXiv:2207.01382 (Early-Bird with Early-Time)", recipe=lottery.SEARCH_EARLY_TIME
)
@final
@dataclass(frozen=True)
class EbEt(Method):
    """`early-bird`, whose search is trained with fewer time steps. The cost counts MACs times time steps.

    Args:
        distance, window, patience: as for `early-bird`.
        search_T: time steps of the search; None lets the network choose, as for `imp-et`.
    Source: Kim et al. 2022, arXiv:2207.01382, and their code, whose choice of time steps this equals on the same
        answers (tests/authors/early_time.py). Theirs looks at 1,000 images; here at one batch.

    Examples:
        >>> pruner = sp.Pruner(model, sp.EbEt(), sp.Cubic(to=0.75, begin=0, end=6, every=2))
        >>> pruner.attach(optimizer)
        Pruner(...)
        >>> losses = train(6)
        >>> pruner.alive, pruner.prunable
        (192, 768)
    """

    distance: float = 0.02
    window: int = 5
    patience: float = 0.5
    search_T: int | None = None
    rewinds: ClassVar[str] = "once"

    def __post_init__(self) -> None:
        lottery.check_search(self.distance, self.window, self.patience)
        lottery.check_search_T(self.search_T)

    def score(self, evidence: Evidence) -> Scores:
        return magnitude(evidence)

    def at_event(self, training: Training) -> bool:
        scores = {name: weight.abs() for name, weight in training.weights.items()}
        return lottery.settled(training, scores, self.window, self.distance)
