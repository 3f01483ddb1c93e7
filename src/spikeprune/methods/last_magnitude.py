"""Regrowth by the size a weight had when it was cut: the control of scores that merely undo the last cuts."""

from dataclasses import dataclass
from typing import final

import torch

from spikeprune.core.evidence import Evidence, Scores
from spikeprune.methods.base import MagnitudeRegrowth, Training
from spikeprune.methods.registry import register


@register("last-magnitude", source="a control of ours: no evidence but a weight's own past")
@final
@dataclass(frozen=True)
class LastMagnitude(MagnitudeRegrowth):
    """Prune by magnitude, bring back the dead weights that were largest when they were cut.

    score = |w|,  regrow_score = |last value while alive|;  those cut in this mask update count with their present value

    A score that prefers weights which magnitude has just cut may win by that alone; this does nothing else.

    Args:
        regrow, candidates, momentum, grace, start_value: as for `criticality`.

    Examples:
        >>> pruner = sp.Pruner(model, sp.LastMagnitude(regrow=0.3), sp.Cubic(to=0.75, begin=0, end=6, every=2))
        >>> pruner.attach(optimizer)
        Pruner(...)
        >>> losses = train(6)
        >>> pruner.alive, pruner.prunable
        (192, 768)
    """

    def at_event(self, training: Training) -> bool:
        last = training.memory.setdefault("last", {})
        for name, weight in training.weights.items():
            before = last.get(name, torch.zeros_like(weight))
            last[name] = torch.where(training.masks[name], weight, before)
        return True

    def regrow_score(self, evidence: Evidence) -> Scores:
        last = evidence.memory.get("last", evidence.weights)
        return {name: value.abs() for name, value in last.items()}
