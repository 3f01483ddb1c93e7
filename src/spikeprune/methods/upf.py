"""UPF: a gate for each weight, learned beside it and sharpened until it is open or shut."""

import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch

from spikeprune.core.errors import InvalidValue
from spikeprune.core.evidence import Evidence, Scores
from spikeprune.methods.base import Method, Training, magnitude
from spikeprune.methods.registry import register


@register("upf", source="Shi et al. 2024, ICLR: Towards Energy Efficient Spiking Neural Networks (UPF)")
@final
@dataclass(frozen=True)
class Upf(Method):
    """Train w = theta * sigmoid(k * m), where the gates m are learned under a pull that shuts them, and k grows.

        dL/dm = dL/dw * theta * g' + penalty * g',   g = sigmoid(k * m),  g' = k * g * (1 - g)
        m -= mask_rate * lr * dL/dm,   theta follows the optimizer with the gradient dL/dw * g
        k = first * (last / first)^progress

    With m = 0 at first every gate is half open; the very first step is an ordinary one. The sparsity on the way is
    whatever the gates make it; all weights stay alive up to the last mask update, which keeps the highest m, exactly,
    and lets the kept weights be theta.

    Args:
        penalty: the pull per gate, the authors' lambda, which sets the sparsity there; here it only orders the gates.
        mask_rate: learning rate of the gates over that of the weights.
        first, last: steepness k at the start and at the last mask update.
    Raises: InvalidValue for a setting of 0 or less, or a steepness that falls.
    Source: Shi et al. 2024, "Towards Energy Efficient Spiking Neural Networks: An Unstructured Pruning Framework",
        ICLR, and their code (commit 175134e), whose gates these equal under SGD (tests/authors/upf.py). Not taken
        over: the gates of neurons, one for each place of a map, which no weight mask can hold; the weighting of the
        penalty by synaptic operations; and the optimizer of their own (Adam) that gates have there.

    Examples:
        >>> pruner = sp.Pruner(model, sp.Upf(), sp.Cubic(to=0.75, begin=0, end=6, every=2))
        >>> pruner.attach(optimizer)
        Pruner(...)
        >>> losses = train(6)
        >>> pruner.alive, pruner.prunable
        (192, 768)
    """

    penalty: float = 1e-3
    mask_rate: float = 1.0
    first: float = 5.0
    last: float = 1000.0
    acts: ClassVar[bool] = True
    sees_gradients: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not (self.penalty >= 0 and self.mask_rate > 0 and 0 < self.first <= self.last):
            raise InvalidValue(
                "upf takes penalty of 0 or more, mask_rate above 0 and 0 < first <= last, got "
                f"{self.penalty}, {self.mask_rate}, {self.first}, {self.last}"
            )

    def before_update(self, training: Training) -> None:
        memory = training.memory
        for name, grad in training.grads.items() if memory else ():
            theta, gate, k = memory["theta"][name], memory["gate"][name], memory["steepness"][name]
            opened = torch.sigmoid(k * gate)
            slope = k * opened * (1 - opened)
            gate -= self.mask_rate * training.rates[name] * (grad * theta * slope + self.penalty * slope)
            grad.mul_(opened)
            if not training.decoupled:  # the optimizer adds decay * w, and theta decays
                grad += training.decays[name] * (theta - training.weights[name])

    def after_update(self, training: Training) -> None:
        memory = training.memory
        k = self.first * math.exp(math.log(self.last / self.first) * training.progress)
        if not memory:
            for kind in ("theta", "gate", "w", "steepness"):
                memory[kind] = {name: torch.zeros_like(weight) for name, weight in training.weights.items()}
        for name, weight in training.weights.items():
            memory["theta"][name] += weight - memory["w"][name]
            memory["steepness"][name].fill_(k)
            weight.copy_(memory["theta"][name] * torch.sigmoid(k * memory["gate"][name]))
            memory["w"][name].copy_(weight)

    def at_event(self, training: Training) -> bool:
        if training.progress < 1:
            return False
        for name, theta in training.memory.get("theta", {}).items():
            training.weights[name].copy_(theta)
        return True

    def score(self, evidence: Evidence) -> Scores:
        return evidence.memory.get("gate") or magnitude(evidence)
