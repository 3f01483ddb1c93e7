"""Principal components of the membrane potentials as the score of a channel."""

from dataclasses import dataclass
from typing import ClassVar, final

from spikeprune.core.errors import InvalidValue
from spikeprune.core.evidence import Evidence, Scores
from spikeprune.core.statistic import Components, Statistic
from spikeprune.methods.base import Method, Observation, Site
from spikeprune.methods.registry import register


@register("pca", source="Chowdhury et al. 2021, arXiv:2104.12528")
@final
@dataclass(frozen=True)
class Pca(Method):
    """Keep the channels that make up the leading principal components of their layer's membrane potentials.

        score[c] = sum_k lambda_k V[c, k]^2,  k over the components that hold `variance` of the layer's variance

    of the potentials averaged over time. Takes pattern "channel" or "gate".

    Args:
        variance: share of the variance that the leading components hold, in (0, 1].
        batches: training steps before the mask update over which the covariance is taken.
    Source: Chowdhury et al. 2021, arXiv:2104.12528, which takes the number of such components as the layer's width and
        trains anew; naming the channels by their share of these components is ours.

    Examples:
        >>> masks = sp.prune(model, sp.Pca(), 0.5, data=data, loss=loss, pattern="channel")
        >>> [int(masks[name].flatten(1).any(1).sum()) for name in ("0.weight", "4.weight")]  # of 4 and of 6 channels
        [1, 4]
    """

    variance: float = 0.999
    batches: int = 1
    needs: ClassVar[frozenset[str]] = frozenset({"weights", "membrane"})
    channels: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self.observation()
        if not 0 < self.variance <= 1:
            raise InvalidValue(f"variance must be in (0, 1], the share of variance to explain, got {self.variance}")

    def observation(self) -> Observation:
        return Observation(batches=self.batches)

    def score(self, evidence: Evidence) -> Scores:
        return evidence.of_channels("statistic")

    def statistic(self, layer: Site) -> Statistic:
        return Components(layer.potential, self.variance)
