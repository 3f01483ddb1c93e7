"""Grad R (gradient rewiring): connections have a sign and a hidden strength, and exist while it is positive."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from spikeprune.core.errors import InvalidValue
from spikeprune.core.evidence import Evidence, Scores
from spikeprune.methods.base import Method, Training, magnitude
from spikeprune.methods.registry import register


@register("grad-r", source="Chen et al. 2021, arXiv:2105.04916")
@final
@dataclass(frozen=True)
class GradR(Method):
    """Train hidden strengths theta under a prior that wants most of them below 0; keep the strongest at the end.

        w = s * relu(theta),  s = sign(w) at the start, fixed
        theta += s * (the optimizer's update of w) - lr * alpha * sign(theta - mu),   mu = ln(2 (1 - sparsity)) / alpha

    The update is computed from the gradient by w also where w = 0: that is how a connection grows back. With a
    Laplacian prior of scale 1/alpha around mu, a share 1 - sparsity of the strengths lies above 0 in the end. By
    design the sparsity on the way is whatever the strengths make it; the last event fixes the mask at the schedule's
    sparsity, exactly, by the highest strengths (those not above 0 are kept with weight 0), and ordinary training of
    the kept weights follows. Earlier events change nothing.

    Args:
        alpha: strength of the prior; lr * alpha is what a strength loses in each step.
    Raises: InvalidValue in the first step for a sparsity below 1/2, for which the prior is not defined.
    Source: Chen et al. 2021, arXiv:2105.04916, and their code, an Adam of their own; here the rule takes its update
        from any optimizer, and the prior uses the plain learning rate (theirs Adam's, corrected for bias). They
        leave out the last event and the training after it.
    """

    alpha: float = 1e-4
    acts: ClassVar[bool] = True
    sees_gradients: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.alpha > 0:
            raise InvalidValue(
                f"alpha must be above 0, the strength of the prior (the authors' 1e-4), got {self.alpha}"
            )

    def before_update(self, training: Training) -> None:
        if training.memory:
            return
        if training.sparsity < 0.5:
            raise InvalidValue(f"grad-r's prior needs a sparsity of at least 0.5, got {training.sparsity:g}")
        training.memory["sign"] = {name: weight.sign() for name, weight in training.weights.items()}
        training.memory["strength"] = {name: weight.abs() for name, weight in training.weights.items()}

    def after_update(self, training: Training) -> Mapping[str, Tensor]:
        self.before_update(training)  # for loops that never show the gradients
        mu = math.log(2 * (1 - training.sparsity)) / self.alpha
        masks: dict[str, Tensor] = {}
        for name, weight in training.weights.items():
            sign, strength = training.memory["sign"][name], training.memory["strength"][name]
            prior = training.rates[name] * self.alpha * torch.sign(strength - mu)
            strength += sign * (weight - sign * strength.relu()) - prior
            weight.copy_(sign * strength.relu())
            masks[name] = strength > 0
        return masks

    def at_event(self, training: Training) -> bool:
        return training.progress >= 1

    def score(self, evidence: Evidence) -> Scores:
        return evidence.memory.get("strength") or magnitude(evidence)
