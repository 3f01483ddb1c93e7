"""Random pruning: which weights stay is a draw. The floor under every table."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

from spikeprune.core.evidence import Evidence, Scores
from spikeprune.methods.base import Method, uniform
from spikeprune.methods.registry import register


@register("random-prune", source="Liu et al. 2022, arXiv:2202.02643")
@final
@dataclass(frozen=True)
class RandomPrune(Method):
    """Keep weights at random; bring nothing back.

        score ~ U(0, 1)

    A recipe draws one mask before training, with ERK layer sizes, and holds it; under a rising schedule the weights
    to cut are drawn at each event.

    Source: Liu et al. 2022, arXiv:2202.02643, "The unreasonable effectiveness of random pruning".
    """

    defaults: ClassVar[Mapping[str, Any]] = {"start": "random", "allocate": "erk", "prune.schedule": "constant"}

    def score(self, evidence: Evidence) -> Scores:
        return uniform(evidence)
