"""STDS: a growing dead zone around 0, under which weights go on learning."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from spikeprune.core.errors import InvalidValue
from spikeprune.core.evidence import Evidence, Scores
from spikeprune.methods.base import Method, Training, check_choice, is_number, magnitude
from spikeprune.methods.registry import register


@register("stds", source="Chen et al. 2022, ICML: State Transition of Dendritic Spines")
@final
@dataclass(frozen=True)
class Stds(Method):
    """Soft-threshold the weights by a threshold d that grows; the gradient passes straight through it.

        w = sign(theta) * relu(|theta| - d),   theta += the optimizer's update of w, also where w = 0

    The optimizer's weight decay shrinks theta, as in the authors' code, where theta is the parameter.

    Args:
        depth: with None, each mask update sets d, layer by layer, to the largest |theta| that the schedule's sparsity
            cuts, so each mask update meets its sparsity exactly. A number is the authors' D, which d reaches at the
            last mask update. Then only the last mask update is exact: it keeps the largest |theta|, and kept weights
            inside the dead zone are 0.
        ramp: how d grows to `depth`: "sine", (1 + sin(pi * (progress - 1/2))) / 2, or "linear".
    After the last mask update the mask is fixed, and the kept weights train on as ordinary ones. The authors train
    under the growing threshold to the end.
    Their code changes the threshold after an update but shows it only to the next forward. Here the weights follow at
    once, which is the same network.
    Source: Chen et al. 2022, "State Transition of Dendritic Spines Improves Learning of Sparse Spiking Neural
        Networks" (ICML, PMLR 162), and their code (function "stmod"); one threshold for all layers there.

    Examples:
        >>> pruner = sp.Pruner(model, sp.Stds(), sp.Cubic(to=0.75, begin=0, end=6, every=2))
        >>> pruner.attach(optimizer)
        Pruner(...)
        >>> losses = train(6)
        >>> pruner.alive, pruner.prunable
        (192, 768)
    """

    depth: float | None = None
    ramp: str = "sine"
    acts: ClassVar[bool] = True
    sees_gradients: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_choice("ramp", self.ramp, ("sine", "linear"))
        if self.depth is not None and not (is_number(self.depth) and self.depth > 0):
            raise InvalidValue(f"depth must be None (set by the sparsity) or a threshold above 0, got {self.depth}")

    def before_update(self, training: Training) -> None:
        self._begin(training)
        for name, grad in training.grads.items() if not training.decoupled else ():
            if name in training.weights and training.decays[name]:  # the optimizer adds decay * w, and theta decays
                grad += training.decays[name] * (training.memory["theta"][name] - training.weights[name])

    def _begin(self, training: Training) -> None:
        if not training.memory:
            training.memory["theta"] = {name: weight.clone() for name, weight in training.weights.items()}
            training.memory["d"] = {name: weight.new_zeros(()) for name, weight in training.weights.items()}

    def after_update(self, training: Training) -> Mapping[str, Tensor]:
        self._begin(training)  # for loops that never show the gradients
        theta, d = training.memory["theta"], training.memory["d"]
        for name, weight in training.weights.items():
            before = _soft(theta[name], d[name])
            shrunk = training.rates[name] * training.decays[name] if training.decoupled else 0.0
            theta[name] += weight - before - shrunk * (theta[name] - before)
            if self.depth is not None:
                d[name].fill_(self.depth * _ramp(self.ramp, training.progress))
            weight.copy_(_soft(theta[name], d[name]))
        return {name: theta[name].abs() > d[name] for name in theta}

    def at_event(self, training: Training) -> bool:
        if self.depth is not None:
            return training.progress >= 1
        if training.memory:
            theta = training.memory["theta"]
            masks = training.select({name: value.abs() for name, value in theta.items()})
            for name, weight in training.weights.items():
                cut = theta[name][~masks[name]].abs()
                training.memory["d"][name] = cut.max() if cut.numel() else weight.new_zeros(())
                weight.copy_(_soft(theta[name], training.memory["d"][name]))
        return True

    def score(self, evidence: Evidence) -> Scores:
        theta = evidence.memory.get("theta")
        return {name: value.abs() for name, value in theta.items()} if theta else magnitude(evidence)


def _soft(theta: Tensor, d: Tensor) -> Tensor:
    return torch.sign(theta) * (theta.abs() - d).relu()


def _ramp(name: str, progress: float) -> float:
    """How far the threshold has grown, in [0, 1]; "sine" starts and ends slowly, as in the authors' code."""
    return (1 + math.sin(math.pi * (progress - 0.5))) / 2 if name == "sine" else progress
