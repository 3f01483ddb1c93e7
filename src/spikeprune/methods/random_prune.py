"""Random pruning: which weights stay is a draw. The floor under every table."""

from dataclasses import dataclass
from typing import final

from spikeprune.core.evidence import Evidence, Scores
from spikeprune.methods.base import Method, uniform
from spikeprune.methods.registry import RecipeHints, register


@register(
    "random-prune",
    source="Liu et al. 2022, arXiv:2202.02643",
    recipe=RecipeHints({"start": "random", "allocate": "erk", "prune.schedule": "constant"}),
)
@final
@dataclass(frozen=True)
class RandomPrune(Method):
    """Keep weights at random; bring nothing back.

        score ~ U(0, 1)

    A recipe draws one mask before training, with ERK layer sizes, and holds it; under a rising schedule the weights
    to cut are drawn at each mask update.

    Source: Liu et al. 2022, arXiv:2202.02643, "The unreasonable effectiveness of random pruning".

    Examples:
        >>> pruner = sp.Pruner(model, sp.RandomPrune(), sp.Cubic(to=0.75, begin=0, end=6, every=2), start="random")
        >>> pruner.attach(optimizer)
        Pruner(...)
        >>> losses = train(6)
        >>> pruner.alive, pruner.prunable
        (192, 768)
    """

    def score(self, evidence: Evidence) -> Scores:
        return uniform(evidence)
