"""RCMO-SNN: a minimax over weights, layer sparsities and multipliers, under a budget."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from spikeprune.core.errors import InvalidValue
from spikeprune.core.evidence import Evidence, Scores
from spikeprune.methods.base import Method, Training
from spikeprune.methods.registry import register


@register("rcmo", source="Chen et al. 2023, arXiv:2308.04672 (RCMO-SNN)")
@final
@dataclass(frozen=True)
class Rcmo(Method):
    """Shrink the least important weights of each layer more and more; how many that are per layer is learned.

        min over W, s  max over y >= 0:  L(W) + sum_l y[l] * (sum of the s[l] smallest w^2 of layer l)
        under  sum_l s[l] = budget

    In every step: W is updated by the optimizer; s, for this y, cuts the smallest y[l] * w^2 over all layers; those
    weights are divided by 1 + 2 lr y[l] (the proximal step); y[l] grows by dual * (sum of their squares). A layer whose
    weights resist gets a larger y, its weights rank higher, and its sparsity falls. The budget is the schedule's
    sparsity so far; all weights stay alive up to the last mask update, which cuts exactly, by y[l] * w^2.

    Args:
        pull: y of every layer at the start; lr * pull is the share that weights lose in a step, halved.
        dual: rate at which y grows.
    Source: Chen et al. 2023, arXiv:2308.04672; their public code has one s and one y for the whole network, zeroes the
        s smallest weights before every step, and moves s and the budget's multiplier z by gradient steps (rates 0.5
        and 1e10). Implemented is one s and y per layer, as the title's problem asks, with s and z solved exactly (at
        the optimum y[l] * w^2 is the same at every layer's cut), and weights shrunk, not zeroed, on the way; pull and
        dual are ours.

    Examples:
        >>> pruner = sp.Pruner(model, sp.Rcmo(), sp.Cubic(to=0.75, begin=0, end=6, every=2))
        >>> pruner.attach(optimizer)
        Pruner(...)
        >>> losses = train(6)
        >>> pruner.alive, pruner.prunable
        (192, 768)
    """

    pull: float = 0.01
    dual: float = 0.01
    acts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not (self.pull > 0 and self.dual >= 0):
            raise InvalidValue(f"pull must be above 0 and dual at least 0, got pull={self.pull}, dual={self.dual}")

    def after_update(self, training: Training) -> None:
        if not training.memory:
            training.memory["y"] = {name: weight.new_tensor(self.pull) for name, weight in training.weights.items()}
        y = training.memory["y"]
        kept = training.select(_cost(training.weights, y))
        for name, weight in training.weights.items():
            weight.div_(1 + 2 * training.rates[name] * y[name] * ~kept[name])
            y[name] = y[name] + self.dual * weight.square().mul(~kept[name]).sum()

    def at_event(self, training: Training) -> bool:
        return training.progress >= 1

    def score(self, evidence: Evidence) -> Scores:
        return _cost(evidence.weights, evidence.memory.get("y", {}))


def _cost(weights: Mapping[str, Tensor], y: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: weight.square() * y.get(name, 1.0) for name, weight in weights.items()}
