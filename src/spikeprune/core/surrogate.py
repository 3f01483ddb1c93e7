"""Surrogate curves by name: the smooth forward curve and its derivative, as functions of u = v_pre - v_threshold.

They are for scoring with another curve than the neuron's own (the authors' ablations); networks train with their own.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from spikeprune.core.errors import unknown


@dataclass(frozen=True)
class Curve:
    """A surrogate: `value(u)` rises from about 0 to about 1 through 1/2 at u = 0; `derivative(u)` peaks there."""

    value: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor], Tensor]


def atan(alpha: float = 2.0) -> Curve:
    """value = atan(pi alpha u / 2) / pi + 1/2;  derivative = (alpha / 2) / (1 + (pi alpha u / 2)^2).

    Source: Fang et al. 2021, arXiv:2007.05785; the structured code of arXiv:2311.16141 takes alpha = 2, with a constant
    factor before the derivative.
    """
    k = math.pi / 2 * alpha
    return Curve(lambda u: torch.atan(k * u) / math.pi + 0.5, lambda u: (alpha / 2) / (1 + (k * u) ** 2))


def sigmoid(alpha: float = 4.0) -> Curve:
    """value = sigmoid(alpha u);  derivative = alpha * value * (1 - value)."""

    def derivative(u: Tensor) -> Tensor:
        s = torch.sigmoid(alpha * u)
        return alpha * s * (1 - s)

    return Curve(lambda u: torch.sigmoid(alpha * u), derivative)


def dspike(k: float = 3.0, *, clamped: bool = False) -> Curve:
    """value = (tanh(k u) + tanh(k / 2)) / (2 tanh(k / 2));  derivative = k sech^2(k u) / (2 tanh(k / 2)).

    `clamped` holds u in [-1/2, 1/2] and makes the derivative 0 outside, as in training; the authors' unstructured
    score is the unclamped value.
    Source: Li et al. 2021 (Dspike); k = 3 in the code of arXiv:2311.16141.
    """
    bottom = math.tanh(k / 2)

    def value(u: Tensor) -> Tensor:
        u = u.clamp(-0.5, 0.5) if clamped else u
        return (torch.tanh(k * u) + bottom) / (2 * bottom)

    def derivative(u: Tensor) -> Tensor:
        t = torch.tanh(k * u)
        slope = (t * t).neg_().add_(1).mul_(k).div_(2 * bottom)  # in place: this runs over every potential recorded
        return slope.masked_fill_(u.abs() > 0.5, 0) if clamped else slope

    return Curve(value, derivative)


CURVES: dict[str, Callable[[], Curve]] = {
    "atan": atan,
    "dspike": dspike,
    "dspike-clamped": lambda: dspike(clamped=True),
    "sigmoid": sigmoid,
}


def curve_named(name: object) -> Curve:
    """The curve of that name.

    Raises: UnknownName with the nearest name.
    """
    if not isinstance(name, str) or name not in CURVES:
        raise unknown("surrogate curve", str(name), CURVES)
    return CURVES[name]()
