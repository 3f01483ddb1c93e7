"""RigL: sparse from the start, the weakest connections replaced by those the loss asks for."""

from dataclasses import dataclass
from typing import ClassVar, final

from spikeprune.core.evidence import Evidence, Scores
from spikeprune.core.schedule import Schedule
from spikeprune.methods.base import Method, Regrowth, magnitude
from spikeprune.methods.registry import RecipeHints, register


@register(
    "rigl",
    source="Evci et al. 2020, arXiv:1911.11134",
    recipe=RecipeHints(
        {
            "regrow": 0.3,
            "regrow_schedule": "decay",
            "start": "random",
            "allocate": "erk",
            "prune.schedule": "constant",
        }
    ),
)
@final
@dataclass(frozen=True)
class RigL(Method):
    """Drop a decaying share of each layer's weights, the smallest; grow as many where the dense gradient is largest.

        score = |w|,  regrow_score = |dL/dw|  of the mask update's own step

    A recipe starts it from a random mask with ERK layer sizes, at constant sparsity.

    Args:
        regrow: share of each layer's weights that the first mask update replaces; it falls to 0 as a cosine. The paper
            has alpha = 0.3. Its cosine runs over steps and ours over mask updates, so our first one has alpha itself.
        start_value: "kept", as in the authors' code: a weight that one mask update drops and grows keeps its value and
            its optimizer state. Any other grown weight starts at 0 with an empty state.
    Where it differs from the authors' code: theirs makes no weight update in the step of a mask update and ranks the
    weights as they were before it. Here the optimizer's update is made first, and the weights after it are ranked
    against the gradients of the same step. With that order their mask updates equal these (tests/authors/rigl.py).
    Source: Evci et al. 2020, arXiv:1911.11134, algorithm 1, and their code. Its noise of 1e-5 on |w| only breaks
        ties and is left out.

    Examples:
        >>> pruner = sp.Pruner(model, sp.RigL(regrow=0.3), sp.Cubic(to=0.75, begin=0, end=6, every=2))
        >>> pruner.attach(optimizer)
        Pruner(...)
        >>> losses = train(6)
        >>> pruner.alive, pruner.prunable
        (192, 768)
    """

    regrow: float | Schedule = 0.3
    start_value: str = "kept"
    needs: ClassVar[frozenset[str]] = frozenset({"weights", "grads"})
    regrows: ClassVar[bool] = True
    within_layers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self.regrowth()

    def regrowth(self) -> Regrowth:
        return Regrowth(self.regrow, start_value=self.start_value)

    def score(self, evidence: Evidence) -> Scores:
        return magnitude(evidence)

    def regrow_score(self, evidence: Evidence) -> Scores:
        return {name: gradient.abs() for name, gradient in evidence.gradients().items()}
