"""DPAP: neurons and synapses of high activity survive; the others lose a little survival in each mask update."""

import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from spikeprune.core.errors import InvalidValue, MissingEvidence
from spikeprune.core.evidence import Evidence, Scores, over_outputs
from spikeprune.core.statistic import Statistic
from spikeprune.methods.base import Memory, Method, Observation, Site, is_number
from spikeprune.methods.registry import register
from spikeprune.methods.shared.quantile import quantile, scaled

_START, _KEPT = 10.0, 0.999  # of the survival: where it starts, and what an update leaves of it
_FILTERS, _LINEAR = (0.65, 5.0, 12), (1.5, 2.0, 13)  # bar, reward, period


@register("dpap", source="Han et al. 2022, arXiv:2211.12714 (DPAP)")
@final
@dataclass(frozen=True)
class Dpap(Method):
    """Keep what has the highest survival, which falls for filters, neurons and synapses of little activity.

        survival = 0.999 * survival + d * exp(-floor(k / period)),   10 before the mask update k = 0
        d = 2 * u(activity) - bar,  and d + reward where d > 0;   u(x) = (x - min) / (75 % quantile - min), in [0, 1]
        activity of a neuron = n(sum of bcm over its inputs) * n(trace),   of a synapse = bcm;   n = (x - min) / range
        score = survival of the filter; in a Linear layer the lower one of the neuron's and of the synapse's

    bcm is a Hebbian product of spike traces with a sliding threshold, trace the sum of the neuron's traces, both over
    all steps since the first (`core/statistic.py`, TraceProducts). Each layer is scaled by itself. bar, reward and
    period are 0.65, 5 and 12 for filters, 1.5, 2 and 13 in Linear layers. A layer that feeds no neuron has |w| in place
    of bcm, without a part for neurons; that is ours. All weights of a filter tie, so an exact count may split one.

    Args:
        decay: of a trace, from one time step to the next, in [0, 1).
    Raises: InvalidValue for another decay.
    Source: Han et al. 2022, arXiv:2211.12714, and their code (BrainCog, commit 3998fd5), whose masks these equal at
        their counts, a mask update an epoch and one sample a batch (tests/authors/dpap.py). Theirs has a sliding
        threshold for each place in a batch, here one for each neuron; its zeros may move up to the end of an epoch,
        here they hold; it cuts all whose survival is below 0, here the schedule says how many; it leaves the last
        layer alone, which `exclude` does here. Not taken over: the same rule for networks without spikes.

    Examples:
        >>> pruner = sp.Pruner(model, sp.Dpap(), sp.Cubic(to=0.75, begin=0, end=6, every=2))
        >>> pruner.attach(optimizer)
        Pruner(...)
        >>> losses = train(6)
        >>> pruner.alive, pruner.prunable
        (192, 768)
    """

    decay: float = 0.5
    needs: ClassVar[frozenset[str]] = frozenset({"weights", "spikes"})

    def __post_init__(self) -> None:
        if not (is_number(self.decay) and 0 <= self.decay < 1):
            raise InvalidValue(f"dpap takes a decay of traces in [0, 1), got {self.decay}; the authors' is 0.5")

    def observation(self) -> Observation:
        return Observation(unit="synapse", whole=True)

    def statistic(self, layer: Site) -> Statistic:
        return layer.per_trace(self.decay)

    def remember(self, evidence: Evidence) -> Memory:
        if not evidence.statistics:
            raise MissingEvidence(
                "dpap needs the spikes of the network; pass data=, or train through the Pruner's model"
            )
        memory: Memory = {kind: dict(evidence.memory.get(kind, {})) for kind in ("neuron", "synapse")}
        for name, weight in evidence.weights.items():
            rule = _LINEAR if weight.dim() == 2 else _FILTERS
            for kind, activity in _activities(name, weight, evidence.statistics.get(name)).items():
                memory[kind][name] = _survival(memory[kind].get(name), activity, rule, evidence.number)
        return memory

    def score(self, evidence: Evidence) -> Scores:
        memory = evidence.memory or self.remember(evidence)
        scores: dict[str, Tensor] = {}
        for name, weight in evidence.weights.items():
            of_neuron, of_synapse = memory["neuron"].get(name), memory["synapse"].get(name)
            parts = [] if of_neuron is None else [over_outputs(of_neuron, weight)]
            parts += [] if of_synapse is None else [of_synapse]
            scores[name] = parts[0] if len(parts) == 1 else torch.minimum(*parts)
        return scores


def _activities(name: str, weight: Tensor, found: Tensor | None) -> dict[str, Tensor]:
    """Kind -> activity, from the traces [C, inputs + 1] of a weight; None for one that feeds no neuron."""
    if found is None:
        return {"synapse": weight.abs().double()}
    if found.shape[0] != weight.shape[0]:
        raise InvalidValue(
            f"dpap knows weights whose first dimension counts outputs, and {name!r} is {list(weight.shape)} with "
            f"{found.shape[0]} outputs; pass exclude=[{name!r}]"
        )
    bcm, trace = found[:, :-1], found[:, -1]
    activities = {"neuron": scaled(bcm.sum(1)) * scaled(trace)}
    return activities | {"synapse": bcm} if bcm.shape == weight.shape else activities


def _survival(before: Tensor | None, activity: Tensor, rule: tuple[float, float, int], number: int) -> Tensor:
    """The survival after mask update `number`, from 1."""
    bar, reward, period = rule
    high = scaled(activity, quantile(activity, 0.75)).clamp(0, 1)
    change = high * 2 - bar
    change = (change + reward * (change > 0)) * math.exp(-((number - 1) // period))
    return (_START if before is None else before) * _KEPT + change
