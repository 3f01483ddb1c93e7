"""GraNet: gradual magnitude pruning with regrowth that costs nothing ("zero-cost neuroregeneration")."""

from dataclasses import dataclass
from typing import ClassVar, final

from spikeprune.core.evidence import Evidence, Scores
from spikeprune.core.schedule import Schedule
from spikeprune.methods.base import Method, Regrowth, magnitude
from spikeprune.methods.registry import RecipeHints, register


@register(
    "granet",
    source="Liu et al. 2021, arXiv:2106.10404",
    recipe=RecipeHints(
        {
            "regrow": 0.5,
            "regrow_schedule": "decay",
            "start": "erk",
            "allocate": "global",
            "prune.schedule": "cubic",
            "prune.initial": 0.5,
        }
    ),
)
@final
@dataclass(frozen=True)
class GraNet(Method):
    """Prune globally to the schedule's sparsity, then replace a share of every layer's survivors by gradient.

        score = |w|,  regrow_score = |dL/dw|;  the global ranking sizes the layers, regrowth leaves their sizes alone

    A recipe starts it half dense (a random mask with ERK layer sizes), the paper's sparse-to-sparse form;
    `--start dense --prune.initial 0` is its dense-to-sparse form.

    Args:
        regrow: first share of each layer's weights that is replaced; falls to 0 as a cosine at the last event. The
            authors' falls over the whole training, and goes on replacing weights after the sparsity has been met.
        start_value: "kept", as in the authors' code: a weight dropped and grown in one event goes on as it was.
    Source: Liu et al. 2021, arXiv:2106.10404, and their code (method "GraNet").
    """

    regrow: float | Schedule = 0.5
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
