"""No pruning: the dense run that every table needs beside it."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch

from spikeprune.core.evidence import Evidence, Scores
from spikeprune.methods.base import Method
from spikeprune.methods.registry import register


@register("dense", source="the network as it is")
@final
@dataclass(frozen=True)
class Dense(Method):
    """Prune nothing: the Pruner has no events, whatever the schedule says."""

    prunes: ClassVar[bool] = False

    def score(self, evidence: Evidence) -> Scores:
        return {name: torch.ones_like(weight) for name, weight in evidence.weights.items()}
