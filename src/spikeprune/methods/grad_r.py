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

    The update uses the gradient by w even where w = 0, so a connection can grow back. The prior is a Laplace
    distribution of scale 1/alpha around mu, under which a share 1 - sparsity of the strengths ends above 0. Until the
    last mask update the sparsity follows from the strengths alone. The last mask update keeps exactly the highest
    strengths at the schedule's sparsity (those not above 0 keep the weight 0), and the kept weights train on as
    ordinary ones. Earlier mask updates change nothing.

    Args:
        alpha: strength of the prior. Each step lowers a strength by lr * alpha.
    Raises: InvalidValue in the first step for a sparsity below 1/2, for which the prior is not defined.
    Source: Chen et al. 2021, arXiv:2105.04916, and their code, which is an Adam of their own. Ours takes the update
        from any optimizer, and the prior uses the plain learning rate (theirs uses Adam's, corrected for bias; with
        beta_1 = 0 the two are equal, tests/authors/grad_r.py). They have no last mask update and no training after it.

    Examples:
        >>> pruner = sp.Pruner(model, sp.GradR(alpha=1e-4), sp.Cubic(to=0.75, begin=0, end=6, every=2))
        >>> pruner.attach(optimizer)
        Pruner(...)
        >>> losses = train(6)
        >>> pruner.alive, pruner.prunable
        (192, 768)
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
