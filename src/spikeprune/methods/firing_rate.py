"""Firing rate as the score of a channel."""

from dataclasses import dataclass
from typing import ClassVar, final

from spikeprune.core.evidence import Evidence, Scores
from spikeprune.core.statistic import Statistic
from spikeprune.methods.base import Method, Observation, Site
from spikeprune.methods.registry import register


@register("firing-rate", source="the activity part of Meng et al. 2023 (bn-scale-rate), alone")
@final
@dataclass(frozen=True)
class FiringRate(Method):
    """Keep the channels that fire most.

        score[c] = mean_{t, n, p} spike[t, n, c, p]

    of the first neuron behind the channel. Takes pattern "channel" or "gate".

    Args: batches: training steps before the mask update over which the rate is averaged.

    Examples:
        >>> masks = sp.prune(model, sp.FiringRate(), 0.5, data=data, loss=loss, pattern="channel")
        >>> [int(masks[name].flatten(1).any(1).sum()) for name in ("0.weight", "4.weight")]  # of 4 and of 6 channels
        [1, 4]
    """

    batches: int = 1
    needs: ClassVar[frozenset[str]] = frozenset({"weights", "spikes"})
    channels: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self.observation()

    def observation(self) -> Observation:
        return Observation(batches=self.batches)

    def score(self, evidence: Evidence) -> Scores:
        return evidence.of_channels("statistic")

    def statistic(self, layer: Site) -> Statistic:
        return layer.per_channel(layer.spikes, "mean")
