"""ESL-SNN: a spiking network that is sparse from the start and renews a share of its connections every so often."""

from dataclasses import dataclass
from typing import ClassVar, final

from spikeprune.core.evidence import Evidence, Scores
from spikeprune.core.schedule import Schedule
from spikeprune.methods.base import Method, Regrowth, check_choice, magnitude, uniform
from spikeprune.methods.registry import RecipeHints, register


@register(
    "esl-snn",
    source="Shen et al. 2023, arXiv:2306.03693 (ESL-SNNs)",
    recipe=RecipeHints(
        {
            "regrow": 0.5,
            "regrow_schedule": "decay",
            "start": "random",
            "allocate": "erk",
            "prune.schedule": "constant",
        }
    ),
)
@final
@dataclass(frozen=True)
class EslSnn(Method):
    """Drop a share of each layer's weights, the smallest; grow as many in the same layer, by gradient or at random.

        score = |w|,  regrow_score = |dL/dw| or ~ U(0, 1)

    A recipe starts it from a random mask whose layers have Erdos-Renyi sizes, at constant sparsity. It differs from
    `rigl` and `set` in its start values alone.

    Args:
        regrow: share of each layer's weights that the first mask update renews; a number falls to 0 as a cosine.
        growth_rule: "gradient" or "random".
        start_value: of grown weights: "zero", also for one that the same mask update drops.
    Raises: InvalidValue for another growth_rule.
    Source: Shen et al. 2023, arXiv:2306.03693. No public code was found. The paper gives the fixed density, the
        Erdos-Renyi start, the drop by magnitude and the two rules of growth; share and its decay are our reading.

    Examples:
        >>> pruner = sp.Pruner(model, sp.EslSnn(), sp.Constant(0.75, begin=0, end=6, every=2), start="random")
        >>> pruner.attach(optimizer)
        Pruner(...)
        >>> losses = train(6)
        >>> pruner.alive, pruner.prunable
        (192, 768)
    """

    regrow: float | Schedule = 0.5
    growth_rule: str = "gradient"
    start_value: str = "zero"
    needs: ClassVar[frozenset[str]] = frozenset({"weights", "grads"})
    regrows: ClassVar[bool] = True
    within_layers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_choice("growth_rule", self.growth_rule, ("gradient", "random"))
        self.regrowth()

    def regrowth(self) -> Regrowth:
        return Regrowth(self.regrow, start_value=self.start_value)

    def score(self, evidence: Evidence) -> Scores:
        return magnitude(evidence)

    def regrow_score(self, evidence: Evidence) -> Scores:
        if self.growth_rule == "random":
            return uniform(evidence)
        return {name: gradient.abs() for name, gradient in evidence.gradients().items()}
