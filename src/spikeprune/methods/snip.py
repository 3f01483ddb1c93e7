"""SNIP: prune once, before training, by how much the loss feels each connection."""

from dataclasses import dataclass
from typing import ClassVar, final

from spikeprune.core.evidence import Evidence, Scores
from spikeprune.methods.base import Method
from spikeprune.methods.registry import IN_THE_FIRST_STEP, register


@register(
    "snip",
    source="Lee et al. 2019, arXiv:1810.02340",
    recipe=IN_THE_FIRST_STEP,
)
@final
@dataclass(frozen=True)
class Snip(Method):
    """Keep the weights with the largest saliency; bring nothing back.

        score = |w * dL/dw|,  both as they were before the mask update

    which is the derivative of the loss by a gate on the connection. A recipe prunes in the first step, by its one
    batch: the scores are those of the untrained network, exactly; the kept weights have then made one step with
    the dense network's gradient. `spikeprune.prune(model, "snip", data=..., loss=...)` prunes before any step.

    Source: Lee et al. 2019, arXiv:1810.02340, eq. 6 and 7. Their score is divided by its sum, which changes no rank;
        the network's own initial weights are scored, where the paper draws them with variance scaling.

    Examples:
        >>> masks = sp.prune(model, sp.Snip(), 0.75, data=data, loss=loss)
        >>> masks.alive, masks.total
        (192, 768)
    """

    needs: ClassVar[frozenset[str]] = frozenset({"weights", "grads"})

    def score(self, evidence: Evidence) -> Scores:
        before = evidence.before or evidence.weights
        return {name: (before[name] * gradient).abs() for name, gradient in evidence.gradients().items()}
