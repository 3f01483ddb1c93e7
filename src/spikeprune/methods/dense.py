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
    """Prune nothing: there are no mask updates, whatever the schedule says.

    Examples:
        >>> pruner = sp.Pruner(model, sp.Dense(), sp.Cubic(to=0.75, begin=0, end=4, every=2))
        >>> pruner.attach(optimizer)
        Pruner(...)
        >>> losses = train(4)
        >>> pruner.rounds, pruner.sparsity
        ([], 0.0)
    """

    prunes: ClassVar[bool] = False

    def score(self, evidence: Evidence) -> Scores:
        return {name: torch.ones_like(weight) for name, weight in evidence.weights.items()}
