"""BatchNorm scale times firing rate as the score of a channel."""

from dataclasses import dataclass
from typing import ClassVar, final

from spikeprune.core.evidence import Evidence, Scores
from spikeprune.core.statistic import Statistic
from spikeprune.methods.base import Method, Observation, Site
from spikeprune.methods.registry import register


@register("bn-scale-rate", source="Meng et al. 2023 (BatchNorm scale and firing rate)")
@final
@dataclass(frozen=True)
class BnScaleRate(Method):
    """Keep the channels with a large normalisation scale that also fire.

        score[c] = |gamma[c]| * mean_{t, n, p} spike[t, n, c, p]

    Takes pattern "channel" or "gate".

    Args: batches: training steps before the mask update over which the rate is averaged.
    Source: Meng et al. 2023, channel pruning of SNNs by BatchNorm scale times firing rate. We know the score by name
        only; that it is the plain product of the two is our reading.

    Examples:
        >>> masks = sp.prune(model, sp.BnScaleRate(), 0.5, data=data, loss=loss, pattern="channel")
        >>> [int(masks[name].flatten(1).any(1).sum()) for name in ("0.weight", "4.weight")]  # of 4 and of 6 channels
        [2, 3]
    """

    batches: int = 1
    needs: ClassVar[frozenset[str]] = frozenset({"weights", "spikes"})
    channels: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self.observation()

    def observation(self) -> Observation:
        return Observation(batches=self.batches)

    def score(self, evidence: Evidence) -> Scores:
        rates = evidence.of_channels("statistic")
        return {name: scale * rates[name] for name, scale in evidence.of_channels("scale").items()}

    def statistic(self, layer: Site) -> Statistic:
        return layer.per_channel(layer.spikes, "mean")
