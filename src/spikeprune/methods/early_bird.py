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

    Before the first epoch and after each one the mask at the full sparsity is drawn by |w| and compared with the four
    masks before it. The search ends when the share of entries that differ is below `distance` for all four, and at the
    latest after the share `patience` of the run. Then all parameters and buffers go back to their initial values, and
    the rest of the run trains the ticket, with a learning rate schedule of its own. Search and training share the run's
    epochs.

    Args:
        distance: two masks count as equal if a smaller share of their entries differs.
        window: number of masks that are compared, the newest included.
        patience: share of the run after which the search ends in any case.
    Source: You et al. 2020, arXiv:1909.11957 (channels there), in the form of Kim et al. 2022, arXiv:2207.01382, and
        their code, whose search ends at the same comparison (tests/authors/early_bird.py). Not taken over: their count
        of weights to cut, which is of the weights that are not 0; twice the learning rate in the search; and their
        schedule stepping twice an epoch when the ticket is trained, which brings its learning rate back up.

    Examples:
        >>> pruner = sp.Pruner(model, sp.EarlyBird(), sp.Cubic(to=0.75, begin=0, end=6, every=2))
        >>> pruner.attach(optimizer)
        Pruner(...)
        >>> losses = train(6)
        >>> pruner.alive, pruner.prunable
        (192, 768)
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
