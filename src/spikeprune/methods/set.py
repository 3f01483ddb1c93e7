"""SET: sparse from the start, the weakest connections replaced by random ones."""

from dataclasses import dataclass
from typing import ClassVar, final

from spikeprune.core.evidence import Evidence, Scores
from spikeprune.core.schedule import Constant, Schedule
from spikeprune.methods.base import Method, Regrowth, magnitude, uniform
from spikeprune.methods.registry import RecipeHints, register

_ZETA = Constant(0.3)


@register(
    "set",
    source="Mocanu et al. 2018, arXiv:1707.04780",
    recipe=RecipeHints(
        {
            "regrow": 0.3,
            "regrow_schedule": "constant",
            "start": "random",
            "allocate": "erk",
            "prune.schedule": "constant",
        }
    ),
)
@final
@dataclass(frozen=True)
class Set(Method):
    """Drop a constant share of each layer's weights, the smallest, and grow as many at random in the same layer.

        score = |w|,  regrow_score ~ U(0, 1)

    A recipe starts it from a random mask whose layers have Erdos-Renyi sizes, at constant sparsity.

    Args:
        regrow: share of each layer's weights that each mask update replaces; the paper has zeta = 0.3 throughout.
        start_value: where grown weights start. SET's own code draws the value at random, also for a weight that was
            just dropped. Here, as in RigL's SET, such a weight keeps its value ("kept"), and others start at 0.
    Source: Mocanu et al. 2018, arXiv:1707.04780, algorithm 1, in the form of Evci et al. 2020, arXiv:1911.11134, and
        their code (commit d39fc7d), whose mask updates these equal on the same draws (tests/authors/rigl.py): one
        ranking by |w|. The original drops the share from positive and from negative weights apart.

    Examples:
        >>> pruner = sp.Pruner(model, sp.Set(regrow=0.3), sp.Constant(0.75, begin=0, end=6, every=2), start="random")
        >>> pruner.attach(optimizer)
        Pruner(...)
        >>> losses = train(6)
        >>> pruner.alive, pruner.prunable
        (192, 768)
    """

    regrow: float | Schedule = _ZETA
    start_value: str = "kept"
    regrows: ClassVar[bool] = True
    within_layers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self.regrowth()

    def regrowth(self) -> Regrowth:
        return Regrowth(self.regrow, start_value=self.start_value)

    def score(self, evidence: Evidence) -> Scores:
        return magnitude(evidence)

    def regrow_score(self, evidence: Evidence) -> Scores:
        return uniform(evidence)
