"""NDSNN: drop and grow with a falling number of weights, sparse from the start."""

from dataclasses import dataclass
from typing import ClassVar, final

from spikeprune.core.evidence import Evidence, Scores
from spikeprune.core.schedule import Schedule
from spikeprune.methods.base import Method, Regrowth, magnitude
from spikeprune.methods.registry import RecipeHints, register


@register(
    "ndsnn",
    source="Huang et al. 2023, arXiv:2304.12214",
    recipe=RecipeHints(
        {
            "regrow": 0.5,
            "regrow_schedule": "decay",
            "start": "random",
            "allocate": "erk",
            "prune.schedule": "cubic",
            "prune.initial": 0.7,
        }
    ),
)
@final
@dataclass(frozen=True)
class Ndsnn(Method):
    """Drop more than is grown at each mask update, so that every layer shrinks from a sparse start to its final size.

        drop[l] = share * alive[l], the smallest |w|;  grow[l] = kept[l] - (alive[l] - drop[l]), the largest |dL/dw|

    kept[l] is the layer's size under the schedule (cubic, from `prune.initial`) and ERK; `share` falls as a cosine.
    Where the drop would leave more than kept[l] weights, more are dropped and none are grown.

    Args:
        regrow: share of a layer's alive weights that the first mask update drops; a number falls to 0 at the last one.
        start_value: "kept": a weight that one mask update drops and grows keeps its value.
    Source: Huang et al. 2023, arXiv:2304.12214. No public code; the abstract gives the falling number of non-zeros,
        the rest is our reading of the method: ERK sizes, first share 0.5 without a lower bound (the paper's drop ratio
        has a minimum that we do not know), initial sparsity 0.7 (the paper tries several), values as in RigL.

    Examples:
        >>> pruner = sp.Pruner(model, sp.Ndsnn(regrow=0.3), sp.Cubic(to=0.75, begin=0, end=6, every=2), start="random")
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
        return Regrowth(self.regrow, start_value=self.start_value)

    def survivors(self, kept: int, alive: int, share: float) -> int:
        return min(kept, alive - int(share * alive))

    def score(self, evidence: Evidence) -> Scores:
        return magnitude(evidence)

    def regrow_score(self, evidence: Evidence) -> Scores:
        return {name: gradient.abs() for name, gradient in evidence.gradients().items()}
