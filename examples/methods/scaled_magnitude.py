"""A method of your own is one file. With it in a folder,

    SPIKEPRUNE_METHODS=examples/methods spikeprune run digits --method scaled-magnitude --power 1.0

and `spikeprune list methods`, sweeps, the contract tests and the page of methods have it as well.
"""

from dataclasses import dataclass
from typing import final

from spikeprune.core.errors import InvalidValue
from spikeprune.core.evidence import Evidence, Scores
from spikeprune.methods.base import Method, is_number
from spikeprune.methods.registry import register


@register("scaled-magnitude", source="an example of ours")
@final
@dataclass(frozen=True)
class ScaledMagnitude(Method):
    """Keep the largest weights, each layer's scaled by its fan-in; bring nothing back.

        score = |w| * fan_in^power

    Args:
        power: 0 is plain magnitude; 0.5 undoes the 1 / sqrt(fan_in) of usual initial weights.
    """

    power: float = 0.5

    def __post_init__(self) -> None:
        if not is_number(self.power):
            raise InvalidValue(f"power must be a number, got {self.power!r}; 0.5 lets layers compete on equal terms")

    def score(self, evidence: Evidence) -> Scores:
        return {name: w.abs() * w[0].numel() ** self.power for name, w in evidence.weights.items()}
