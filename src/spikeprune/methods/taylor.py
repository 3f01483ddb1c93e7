"""First-order Taylor score of a channel: how much the loss would feel its loss."""

from dataclasses import dataclass
from typing import ClassVar, final

from spikeprune.core.evidence import Evidence, Scores
from spikeprune.methods.base import Method
from spikeprune.methods.registry import register


@register("taylor", source="Molchanov et al. 2019, arXiv:1906.10771")
@final
@dataclass(frozen=True)
class Taylor(Method):
    """Keep the channels whose removal would change the loss most, to first order.

        score[c] = (sum of w * dL/dw)^2

    over the channel's normalisation scales, or its filters where it has none; of the event's own batch. Takes pattern
    "channel" or "gate".

    Source: Molchanov et al. 2019, arXiv:1906.10771, eq. 8, gate on BatchNorm; the paper averages over many batches.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"weights", "grads"})
    channels: ClassVar[bool] = True

    def score(self, evidence: Evidence) -> Scores:
        sizes, slopes = evidence.before or evidence.weights, evidence.gradients()
        return {name: (sizes[name] * slopes[name]).square() for name in evidence.of_channels("norm")}
