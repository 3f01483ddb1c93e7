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

        score = |w|,  regrow_score = |dL/dw|  of the event's own step

    A recipe starts it from a random mask with ERK layer sizes, at constant sparsity.

    Args:
        regrow: first share of each layer's weights that is replaced; falls to 0 as a cosine. The paper's alpha = 0.3;
            its cosine runs over steps, ours over events, so that the first event has alpha itself.
        start_value: "kept", as in the authors' code: a weight that is dropped and grown in one event goes on as it was,
            with its optimizer state; any other starts at 0 with an empty one.
    Source: Evci et al. 2020, arXiv:1911.11134, algorithm 1, and their code; its noise of 1e-5 on |w|, which only
        breaks ties, is left out.
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
