"""Critical energy: keep the weights whose loss would flip the most spikes. The score of `sp.squeeze`, in training."""

from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from spikeprune.core.evidence import Evidence, Scores
from spikeprune.core.statistic import Statistic
from spikeprune.core.surrogate import curve_named
from spikeprune.methods.base import Method, Observation, Site
from spikeprune.methods.registry import register


@register("critical-energy", source="spikeprune: criticality as the curvature of the spikes")
@final
@dataclass(frozen=True)
class CriticalEnergy(Method):
    """Keep the weights whose input currents matter most to spikes near their threshold.

        score = w^2 * mean_{t, n, p} surrogate'(v_pre - v_threshold) * x^2

    x is the weight's own input. It is the part of the weight in sum_r c_r (error of the input current)^2, where c, the
    surrogate's derivative, says how much an error can flip a spike. Weights of a layer that feeds no neuron are ranked
    by w^2. Scores of different layers have no common unit, so `allocate="lamp"` goes with this method.

    Args:
        batches: training steps before the mask update over which the mean is taken.
        surrogate: another curve than the neuron's own: "atan", "sigmoid", "dspike", "dspike-clamped".

    Examples:
        >>> masks = sp.prune(model, sp.CriticalEnergy(), 0.75, data=data, loss=loss)
        >>> masks.alive, masks.total
        (192, 768)
    """

    batches: int = 1
    surrogate: str | None = None
    needs: ClassVar[frozenset[str]] = frozenset({"weights", "membrane"})

    def __post_init__(self) -> None:
        self.observation()
        if self.surrogate is not None:
            curve_named(self.surrogate)

    def observation(self) -> Observation:
        return Observation("synapse", self.batches)

    def score(self, evidence: Evidence) -> Scores:
        found = evidence.per_weight()
        return {
            name: weight.square() * found[name] if name in found else weight.square()
            for name, weight in evidence.weights.items()
        }

    def statistic(self, layer: Site) -> Statistic:
        other = None if self.surrogate is None else curve_named(self.surrogate)

        def curve(u: Tensor) -> Tensor:
            return layer.derivative(u) if other is None else other.derivative(u)

        return layer.per_synapse(curve).squared()
