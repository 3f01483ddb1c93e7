"""Early-Bird: the ticket whose mask has stopped changing, drawn long before training ends."""

from dataclasses import dataclass
from typing import ClassVar, final

from spikeprune.core.evidence import Evidence, Scores
from spikeprune.methods.base import Method, Training, magnitude
from spikeprune.methods.registry import register
from spikeprune.methods.shared import lottery


@register(
    "early-bird",
    source="You et al. 2020, arXiv:1909.11957; for SNNs Kim et al. 2022, arXiv:2207.01382",
    recipe=lottery.SEARCH,
)
@final
@dataclass(frozen=True)
class EarlyBird(Method):
    """Train dense until the magnitude mask settles, cut once, go back to the initial weights, train the ticket.

    After every epoch the mask at the full sparsity is drawn by |w|; the search ends when its share of differing
    entries to each of the four masks before is below `distance`, at the latest after `patience` of the run. Then all
    parameters and buffers are the initial ones, and the rest of the run, with a learning rate course of its own, is
    the ticket's training: search and training together make the run's epochs.

    Args:
        distance: below which two masks count as equal.
        window: masks compared, the newest included.
        patience: share of the run after which the ticket is drawn at the latest.
    Source: You et al. 2020, arXiv:1909.11957 (channels there), in the form of Kim et al. 2022, arXiv:2207.01382, and
        their code. Not taken over: twice the learning rate in the search, and their schedule stepping twice an epoch
        when the ticket is trained, which brings its learning rate back up.
    """

    distance: float = 0.02
    window: int = 5
    patience: float = 0.5
    rewinds: ClassVar[str] = "once"

    def __post_init__(self) -> None:
        lottery.check_search(self.distance, self.window, self.patience)

    def score(self, evidence: Evidence) -> Scores:
        return magnitude(evidence)

    def at_event(self, training: Training) -> bool:
        scores = {name: weight.abs() for name, weight in training.weights.items()}
        return lottery.settled(training, scores, self.window, self.distance)
