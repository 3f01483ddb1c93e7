"""Deep R: a fixed number of connections, each with a sign of its own, that die at 0 and are replaced by draws."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from spikeprune.core.errors import InvalidValue
from spikeprune.core.evidence import Evidence, Scores
from spikeprune.core.select import keep_top
from spikeprune.methods.base import Method, Training, is_number, magnitude
from spikeprune.methods.registry import RecipeHints, register

_BORN = 1e-12  # the strength that a new connection starts at, as in the authors' code


@register(
    "deep-r",
    source="Bellec et al. 2018, arXiv:1711.05136 (Deep Rewiring)",
    recipe=RecipeHints({"start": "random", "allocate": "erk", "prune.schedule": "constant"}),
)
@final
@dataclass(frozen=True)
class DeepR(Method):
    """Cut a connection whose weight would change its sign; draw another one of the same layer in its place.

        w = s * theta,  s = +1 or -1, fixed;  a connection is alive while theta > 0
        theta += s * (the optimizer's update of w) + lr * (noise * N(0, 1) - l1)     for alive connections
        dead connections, drawn uniformly, start at theta = 1e-12 until each layer has as many as before the step

    So connections change in every step up to the last mask update, and none of their gradients is needed while they
    are dead. A recipe starts from a random mask with ERK layer sizes and keeps its sparsity. Under a rising schedule a
    mask update cuts the smallest |w|. The last mask update ends the rewiring.

    Args:
        l1: pull of a strength towards 0, per step and learning rate.
        noise: standard deviation of the random walk of a strength, per step and learning rate.
    Raises: InvalidValue for a negative l1 or noise.
    Source: Bellec et al. 2018, arXiv:1711.05136, algorithm 1, and their code (commit 533e016, TensorFlow 1), whose
        rewiring this equals (tests/authors/deep_r.py). Theirs trains by plain gradient descent; here the optimizer's
        momentum of a connection that died has not quite faded if it is drawn again soon. Their signs of start weights
        are drawn; here an alive weight has its own.

    Examples:
        >>> pruner = sp.Pruner(model, sp.DeepR(), sp.Constant(0.75, begin=0, end=6, every=2), start="random")
        >>> pruner.attach(optimizer)
        Pruner(...)
        >>> losses = train(6)
        >>> pruner.alive, pruner.prunable
        (192, 768)
    """

    l1: float = 1e-5
    noise: float = 1e-5
    acts: ClassVar[bool] = True
    sees_gradients: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not all(is_number(value) and value >= 0 for value in (self.l1, self.noise)):
            raise InvalidValue(f"deep-r takes an l1 and a noise of 0 or more, got {self.l1} and {self.noise}")

    def before_update(self, training: Training) -> None:
        self._begin(training)
        for name, grad in training.grads.items():
            if name in training.masks:
                grad.mul_(training.masks[name])

    def after_update(self, training: Training) -> Mapping[str, Tensor]:
        self._begin(training)  # for loops that never show the gradients
        generator = torch.Generator().manual_seed(training.seed)
        masks: dict[str, Tensor] = {}
        for name, weight in training.weights.items():
            sign, alive = training.memory["sign"][name], training.masks[name]
            walk = self.noise * _normal(weight, generator) - self.l1
            theta = torch.where(alive, sign * weight + training.rates[name] * walk, 0)
            lives = theta > 0
            draw = _uniform(weight, generator).masked_fill(lives, -1)
            born = keep_top({name: draw}, int(alive.sum() - lives.sum()))[name]
            weight.copy_(sign * torch.where(born, _BORN, torch.where(lives, theta, 0)))
            masks[name] = lives | born
        return masks

    def score(self, evidence: Evidence) -> Scores:
        return magnitude(evidence)

    def _begin(self, training: Training) -> None:
        """Fixes the sign of each connection: that of its weight, or a random one if the weight is 0."""
        if "sign" in training.memory:
            return
        generator = torch.Generator().manual_seed(training.seed)
        signs = {n: _normal(w, generator).sign() for n, w in training.weights.items()}
        training.memory["sign"] = {n: torch.where(w == 0, signs[n], w.sign()) for n, w in training.weights.items()}


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    """Draws from N(0, 1) on the CPU, so that all devices and ranks agree."""
    return torch.randn(like.shape, generator=generator).to(like)


def _uniform(like: Tensor, generator: torch.Generator) -> Tensor:
    """Draws from U(0, 1) on the CPU, so that all devices and ranks agree."""
    return torch.rand(like.shape, generator=generator).to(like)
