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
        regrow: share of each layer's weights that the first mask update replaces; it falls to 0 as a cosine at the last
            one. The authors' share falls over the whole training, so they still replace weights at the final sparsity.
        start_value: "kept", as in the authors' code: a weight that one mask update drops and grows keeps its value.
    Where it differs from the authors' code, which tests/authors/granet.py runs: theirs never cuts to the final
    sparsity, since its last cut is the last but one of the schedule; here the last one meets the target. Theirs keeps
    one weight fewer than it counts ("greater than" the last one kept), and rounds the replaced share of a layer up,
    not down. Where gradients of dead weights are exactly 0, theirs may grow a weight that is alive, and ends with
    fewer. With the same counts all masks are equal.
    Source: Liu et al. 2021, arXiv:2106.10404, and their code (method "GraNet").

    Examples:
        >>> pruner = sp.Pruner(model, sp.GraNet(regrow=0.3), sp.Cubic(to=0.75, begin=0, end=6, every=2))
        >>> pruner.attach(optimizer)
        Pruner(...)
        >>> losses = train(6)
        >>> pruner.alive, pruner.prunable
        (192, 768)
    """

    regrow: float | Schedule = 0.5
    start_value: str = "kept"
    needs: ClassVar[frozenset[str]] = frozenset({"weights", "grads"})
    regrows: ClassVar[bool] = True
    within_layers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self.regrowth()

    def regrowth(self) -> Regrowth:
        return Regrowth(self.regrow, start_value=self.start_value, cut_forgets=True)

    def score(self, evidence: Evidence) -> Scores:
        return magnitude(evidence)

    def regrow_score(self, evidence: Evidence) -> Scores:
        return {name: gradient.abs() for name, gradient in evidence.gradients().items()}
