"""Is a network critical? Branching ratio and avalanches of its spikes over time.

With the few time steps of an image these numbers describe, and prove nothing: see `LIMITS`. A is the number of spikes
of all neurons at a time step, [N images, T steps].
"""

import itertools
import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from spikeprune.record.analysis import Activity, AvalancheSizes, Branching

LIMITS = (
    "T is a handful of steps, so an image gives T - 1 pairs and no long cascade. The pooled slope takes differences "
    "between images for propagation in time; the slope within images is free of that, but pulled down by "
    "about (1 + m) / (T - 1) (Nickell 1981). The input drives the network at every step. So compare networks at equal "
    "T on equal images; do not read a value near 1 as proof of criticality."
)
_FEWEST = 50  # avalanches, for an exponent


def branching(activity: Float[Tensor, "N T"]) -> Branching:
    """How many spikes follow from one, by three estimates.

        pooled: slope m of A(t + 1) = m A(t) + h over all images and steps, by least squares
        within: the same after each image's own means are taken off (from T = 3 on)
        ratio:  sum A(t + 1) / sum A(t)

    None where a denominator is 0.
    Source: the regression of Wilting & Priesemann 2018, Nature Communications 9:2325, at lag 1.
    """
    a = activity.double()
    before, after = a[:, :-1], a[:, 1:]
    if a.shape[1] < 2:
        return Branching(pooled=None, within=None, ratio=None)
    steady = before - before.mean(1, keepdim=True), after - after.mean(1, keepdim=True)
    return Branching(
        pooled=_slope(before - before.mean(), after - after.mean()),
        within=_slope(*steady) if a.shape[1] > 2 else None,
        ratio=float(after.sum() / before.sum()) if before.sum() > 0 else None,
    )


def _slope(x: Tensor, y: Tensor) -> float | None:
    size = float((x * x).sum())
    return float((x * y).sum()) / size if size > 1e-12 else None


def avalanches(activity: Float[Tensor, "N T"]) -> tuple[list[int], list[int]]:
    """Sizes (spikes) and durations (steps) of the runs of steps with A > 0, in each image by itself.

    The end of an image cuts what is under way; `summary` says how many were cut.
    """
    sizes: list[int] = []
    durations: list[int] = []
    for row in activity.round().long().tolist():
        size = duration = 0
        for spikes in [*row, 0]:
            if spikes:
                size, duration = size + spikes, duration + 1
            elif size:
                sizes.append(size)
                durations.append(duration)
                size = duration = 0
    return sizes, durations


def exponent(values: list[int]) -> float | None:
    """The exponent of p(s) = s^-a / zeta(a), s >= 1, by maximum likelihood: a minimises log zeta(a) + a mean(ln s).

    None for fewer than 50 values, or where all are 1 and every larger a is likelier.
    Source: Clauset, Shalizi & Newman 2009, SIAM Review 51(4), eq. 3.5; the same as powerlaw's discrete fit at xmin = 1.
    """
    if len(values) < _FEWEST or max(values) == 1:
        return None
    mean = math.fsum(math.log(value) for value in values) / len(values)

    def loss(a: float) -> float:
        return math.log(float(torch.special.zeta(torch.tensor(a, dtype=torch.float64), 1.0))) + a * mean

    low, high = 1 + 1e-9, 50.0
    for _ in range(100):  # convex: a third of the interval goes each time
        third = (high - low) / 3
        if loss(low + third) < loss(high - third):
            high -= third
        else:
            low += third
    return (low + high) / 2


def summary(activities: Mapping[str, Float[Tensor, "N T"]]) -> Activity:
    """A network's summary: branching of all its spikes, avalanches in each layer, and spikes from layer to layer."""
    total = torch.stack(list(activities.values())).sum(0)
    sizes: list[int] = []
    durations: list[int] = []
    cut = 0
    for activity in activities.values():
        found = avalanches(activity)
        sizes += found[0]
        durations += found[1]
        cut += int((activity[:, -1] > 0).sum())
    spikes = {name: float(activity.sum(1).mean()) for name, activity in activities.items()}
    ordered = list(spikes.values())
    return Activity(
        T=total.shape[1],
        images=total.shape[0],
        spikes_per_image=spikes,
        layer_ratio=tuple(b / a if a else None for a, b in itertools.pairwise(ordered)),
        branching=branching(total),
        avalanches=AvalancheSizes(
            count=len(sizes),
            cut_by_the_end=cut,
            mean_size=math.fsum(sizes) / len(sizes) if sizes else None,
            mean_duration=math.fsum(durations) / len(durations) if durations else None,
            largest=max(sizes, default=None),
            size_exponent=exponent(sizes),
            duration_exponent=exponent(durations),
        ),
    )
