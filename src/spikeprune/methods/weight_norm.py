"""Filter norm as the score of a channel."""

from dataclasses import dataclass
from typing import ClassVar, final

from spikeprune.core.evidence import Evidence, Scores
from spikeprune.methods.base import Method
from spikeprune.methods.registry import register


@register("weight-norm", source="Li et al. 2017, arXiv:1608.08710")
@final
@dataclass(frozen=True)
class WeightNorm(Method):
    """Keep the channels with the largest filters.

        score[c] = sqrt(mean over the filter of w^2)

    over all layers that write the channel. The mean, where the paper sums |w|, lets layers of different fan-in be
    ranked together; within a layer the order is that of the Euclidean norm. Takes pattern "channel" or "gate".

    Source: Li et al. 2017, arXiv:1608.08710, with the Euclidean norm.

    Examples:
        >>> masks = sp.prune(model, sp.WeightNorm(), 0.5, data=data, loss=loss, pattern="channel")
        >>> [int(masks[name].flatten(1).any(1).sum()) for name in ("0.weight", "4.weight")]  # of 4 and of 6 channels
        [4, 1]
    """

    channels: ClassVar[bool] = True

    def score(self, evidence: Evidence) -> Scores:
        return evidence.of_channels("norm")
