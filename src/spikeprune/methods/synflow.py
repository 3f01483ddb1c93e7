"""SynFlow: prune before training, in many small cuts, by how much flows through each weight. It sees no data."""

from dataclasses import dataclass
from typing import ClassVar, final

from spikeprune.core.errors import InvalidValue
from spikeprune.core.evidence import Evidence, Scores
from spikeprune.methods.base import Method, is_number
from spikeprune.methods.registry import IN_THE_FIRST_STEP, register


@register(
    "synflow",
    source="Tanaka et al. 2020, arXiv:2006.05467",
    recipe=IN_THE_FIRST_STEP,
)
@final
@dataclass(frozen=True)
class Synflow(Method):
    """Keep the weights that carry most of the flow from the inputs to the outputs; bring nothing back.

        score = |w| * dR / d|w|,   R = sum of the outputs of the network of |w| on an input of ones

    The score is computed anew before each of `cuts` cuts, whose densities fall by the same factor, so that no layer is
    emptied before the others are. R is taken in eval mode, with the absolute values of biases and normalisation too.
    Spiking neurons hand on what they get, step by step; the literature has settled no other way. Ordinary activations
    stay, as in the authors' code. Neurons must be modules that an adapter knows; data give the input's shape alone.
    A recipe prunes in the first step, after its update. `spikeprune.prune(model, "synflow", data=...)` prunes before.

    Args:
        cuts: cuts in one mask update.
    Raises: InvalidValue for fewer than 1 cut.
    Source: Tanaka et al. 2020, arXiv:2006.05467, eq. 1 and algorithm 1, and their code (commit 9dfa57a), whose masks
        these equal (tests/authors/synflow.py). Not taken over: scores of biases and normalisation, and their float32,
        in which the flow of a deep network may overflow; here it is float64. They keep ceil(density * n) weights.

    Examples:
        >>> masks = sp.prune(model, sp.Synflow(cuts=10), 0.75, data=data)
        >>> masks.alive, masks.total
        (192, 768)
    """

    cuts: int = 100
    needs: ClassVar[frozenset[str]] = frozenset({"weights", "flow"})

    def __post_init__(self) -> None:
        if not (is_number(self.cuts, whole=True) and self.cuts >= 1):
            raise InvalidValue(f"synflow takes 1 or more cuts in a mask update, got {self.cuts}; the authors' are 100")

    def score(self, evidence: Evidence) -> Scores:
        return {name: (evidence.weights[name] * flow).abs() for name, flow in evidence.flows().items()}

    def cuts_per_update(self) -> int:
        return self.cuts
