"""Mean membrane potential as the score of a channel."""

from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from spikeprune.core.evidence import Evidence, Scores
from spikeprune.core.statistic import Statistic
from spikeprune.methods.base import Method, Observation, Site
from spikeprune.methods.registry import register


@register("membrane", source="Li et al. 2024, ICML (SCA: spiking channel activity)")
@final
@dataclass(frozen=True)
class Membrane(Method):
    """Keep the channels whose membrane potential is largest in size.

        score[c] = mean_{t, n, p} |v_pre[t, n, c, p]|

    of the first neuron behind the channel, after charging and before firing. Takes pattern "channel" or "gate".

    Args: batches: training steps before the mask update over which the mean is taken.
    Source: Li et al. 2024, ICML, "spiking channel activity"; we know the score by name only, the reading is ours.

    Examples:
        >>> masks = sp.prune(model, sp.Membrane(), 0.5, data=data, loss=loss, pattern="channel")
        >>> [int(masks[name].flatten(1).any(1).sum()) for name in ("0.weight", "4.weight")]  # of 4 and of 6 channels
        [1, 4]
    """

    batches: int = 1
    needs: ClassVar[frozenset[str]] = frozenset({"weights", "membrane"})
    channels: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self.observation()

    def observation(self) -> Observation:
        return Observation(batches=self.batches)

    def score(self, evidence: Evidence) -> Scores:
        return evidence.of_channels("statistic")

    def statistic(self, layer: Site) -> Statistic:
        def size(u: Tensor) -> Tensor:
            return layer.potential(u).abs()

        return layer.per_channel(size, "mean")
