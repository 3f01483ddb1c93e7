"""GraSP: prune before training so that the gradient flow, which training lives on, stays large."""

from dataclasses import dataclass
from typing import ClassVar, final

from spikeprune.core.errors import InvalidValue
from spikeprune.core.evidence import Evidence, Scores
from spikeprune.methods.base import Method, is_number
from spikeprune.methods.registry import IN_THE_FIRST_STEP, register


@register(
    "grasp",
    source="Wang et al. 2020, arXiv:2002.07376",
    recipe=IN_THE_FIRST_STEP,
)
@final
@dataclass(frozen=True)
class Grasp(Method):
    """Keep the weights whose removal would lower the squared norm of the gradient; bring nothing back.

        score = w * (H g),   g = dL/dw,  H = d2L/dw2,   L = loss(outputs / temperature, targets)

    To first order, setting w to 0 changes g . g by -2 w (H g). H g is an exact derivative of the gradient, and the
    derivative of a spike is its surrogate's there too. A fused network (`sp.fuse`) has none and is refused. A training
    step does not show H g, so a loop calls `pruner.observe(data, loss)` right before the step of each mask update;
    recipes do that with the step's batch. `spikeprune.prune(model, "grasp", data=..., loss=...)` prunes before any
    step. All batches are held in memory.

    Args:
        temperature: what outputs are divided by before the loss; 200 is the authors'.
    Raises: InvalidValue for a temperature of 0 or less.
    Source: Wang et al. 2020, arXiv:2002.07376, eq. 8, and their code (commit f17d87a), whose masks these equal
        (tests/authors/grasp.py). Not taken over: their new draw of the classifier's weights before the scores, and
        their choice of as many samples of each class. They keep one weight more than the sparsity says.

    Examples:
        >>> masks = sp.prune(model, sp.Grasp(), 0.75, data=data, loss=loss)
        >>> masks.alive, masks.total
        (192, 768)
    """

    temperature: float = 200.0
    needs: ClassVar[frozenset[str]] = frozenset({"weights", "curvature"})

    def __post_init__(self) -> None:
        if not (is_number(self.temperature) and self.temperature > 0):
            raise InvalidValue(f"grasp takes a temperature above 0, got {self.temperature}; the authors' is 200")

    def score(self, evidence: Evidence) -> Scores:
        before = evidence.before or evidence.weights
        return {name: before[name] * product for name, product in evidence.curvatures().items()}

    def softening(self) -> float:
        return self.temperature
