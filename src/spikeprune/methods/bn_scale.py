"""BatchNorm scale as the score of a channel: network slimming."""

from dataclasses import dataclass
from typing import ClassVar, final

from spikeprune.core.evidence import Evidence, Scores
from spikeprune.methods.base import Method
from spikeprune.methods.registry import register


@register("bn-scale", source="Liu et al. 2017, arXiv:1708.06519 (network slimming)")
@final
@dataclass(frozen=True)
class BnScale(Method):
    """Keep the channels with the largest normalisation scale.

        score[c] = |gamma[c]|,  the mean over the group's normalisations

    Takes pattern "channel" or "gate". Training with L1 on gamma (`optim.slim` of a recipe) makes the scales tell more.

    Source: Liu et al. 2017, arXiv:1708.06519.

    Examples:
        >>> masks = sp.prune(model, sp.BnScale(), 0.5, data=data, loss=loss, pattern="channel")
        >>> [int(masks[name].flatten(1).any(1).sum()) for name in ("0.weight", "4.weight")]  # of 4 and of 6 channels
        [3, 2]
    """

    channels: ClassVar[bool] = True

    def score(self, evidence: Evidence) -> Scores:
        return evidence.of_channels("scale")
