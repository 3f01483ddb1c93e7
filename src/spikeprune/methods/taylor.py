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

        score[c] = (dL/dg[c])^2,   dL/dg = gamma * dL/dgamma + beta * dL/dbeta

    where the gate g = 1 multiplies what leaves the channel's normalisation; the sum of w * dL/dw over filters and bias
    where it has none. The score is of the batch of the mask update's step. The method takes pattern "channel" or
    "gate".

    Source: Molchanov et al. 2019, arXiv:1906.10771, section 3.2, gate behind the BatchNorm; the paper averages the
        squares over many batches.

    Examples:
        >>> masks = sp.prune(model, sp.Taylor(), 0.5, data=data, loss=loss, pattern="channel")
        >>> [int(masks[name].flatten(1).any(1).sum()) for name in ("0.weight", "4.weight")]  # of 4 and of 6 channels
        [2, 3]
    """

    needs: ClassVar[frozenset[str]] = frozenset({"weights", "grads"})
    channels: ClassVar[bool] = True

    def score(self, evidence: Evidence) -> Scores:
        evidence.gradients()  # for its error
        return {name: slope.square() for name, slope in evidence.of_channels("slope").items()}
