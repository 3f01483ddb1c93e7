"""Selects the weights that a round keeps: a score for each weight, made comparable between layers.

Scores, w [O, I] the present weights (re-solved in the round before), x the inputs and c the weights of the rows:

    critical   w^2 * sum_r c x^2      an error counts as much as it can flip a spike
    energy     w^2 * sum_r x^2        the error of the layer's output
    wanda      |w| * sqrt(sum_r x^2)  the same order within a neuron as "energy"; take allocate="neuron" with it
    obs        w^2 / [A^-1]           the error after the other weights of the neuron have made up for it
    magnitude  w^2
    random     a draw, the same in every round

Sources: Sun et al. 2023, arXiv:2306.11695 (wanda); Hassibi & Stork 1993 and Frantar & Alistarh 2022, arXiv:2208.11580
(obs); Lee et al. 2021, arXiv:2010.07611 (the form of LAMP). "critical" is ours.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from spikeprune.core.allocate import lamp_score
from spikeprune.core.update import Target, prune_and_regrow

SALIENCIES = ("critical", "energy", "magnitude", "obs", "random", "wanda")
ALLOCATIONS = ("energy", "erk", "global", "lamp", "neuron", "uniform")


@final
@dataclass(frozen=True)
class Quantities:
    """The quantities of one layer that scores are computed from. Weights are [O, I].

    Attributes:
        energy: sum_r x^2, [O, I] (equal for all outputs of a group).
        critical: sum_r c x^2, [O, I]; the energy itself where no c is known.
        output: sum of the squared dense outputs, weighted by c for "critical".
        inverse: diagonal of the inverse Gram matrices, [O, I], for "obs".
        noise: a fixed draw, [O, I], for "random".
    """

    energy: Tensor
    critical: Tensor
    output: float
    inverse: Tensor | None = None
    noise: Tensor | None = None


def score(saliency: str, w: Tensor, known: Quantities) -> Tensor:
    """Higher = keep, [O, I] in double precision, never negative.

    A layer on whose inputs nothing ever arrives is scored by w^2, whose order is as good as any.
    """
    square = w.double().square()
    if saliency == "random":
        assert known.noise is not None
        return known.noise.double()
    if saliency == "magnitude" or not bool(known.energy.any()):
        return square
    if saliency == "obs":
        assert known.inverse is not None
        return square / known.inverse.double().clamp_min(1e-30)
    if saliency == "wanda":
        return (square * known.energy.double()).sqrt()
    return square * (known.critical if saliency == "critical" else known.energy).double()


def comparable(
    allocate: str, scores: Mapping[str, Tensor], known: Mapping[str, Quantities], alive: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Scores that may be ranked over all layers together.

    lamp: over the sum of the layer's alive scores that are not smaller;  energy: over the layer's output energy;
    neuron: the rank within the neuron, so that all neurons keep the same share;  others: as they are.
    """
    if allocate == "lamp":
        found = {n: torch.zeros_like(s) for n, s in scores.items()}
        for n, s in scores.items():
            found[n][alive[n]] = lamp_score(s[alive[n]].sqrt())
        return found
    if allocate == "energy":
        return {n: s / max(known[n].output, 1e-30) for n, s in scores.items()}
    if allocate == "neuron":
        return {n: _ranks(s) for n, s in scores.items()}
    return dict(scores)


def _ranks(scores: Tensor) -> Tensor:
    """1 for the best weight of an output down to 1 / I for the worst; ties by index."""
    flat = scores.flatten(1)
    rank = flat.argsort(dim=1, descending=True, stable=True).argsort(dim=1, stable=True)
    return (1 - rank.double() / flat.shape[1]).view(scores.shape)


def cut(scores: Mapping[str, Tensor], alive: Mapping[str, Tensor], target: Target) -> dict[str, Tensor]:
    """The masks of a round: of the alive weights those with the best scores, exactly as many as the target says."""
    if target.cost is not None:
        scores = {n: s.sqrt() for n, s in scores.items()}  # a budget of cost ranks squared scores per cost
    return prune_and_regrow(scores, {}, alive, scores, target, share=0.0).alive


def path(alive: float, keep: float, rounds: int) -> list[float]:
    """The number that each round keeps: from `alive` to `keep` in equal ratios. The last one is `keep` itself."""
    return [alive * (keep / alive) ** (r / rounds) for r in range(1, rounds)] + [keep]


def noise(shapes: Mapping[str, torch.Size], seed: int) -> dict[str, Tensor]:
    """One draw from U(0, 1) per weight, the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.rand(shape, generator=generator) for n, shape in shapes.items()}
