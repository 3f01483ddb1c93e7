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

    score = |w|,  regrow_score = |last value while alive|;  those cut in this event count with their present value

    A score that prefers weights which magnitude has just cut may win by that alone; this does nothing else.

    Args:
        regrow, candidates, momentum, grace, start_value: as for `criticality`.
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
