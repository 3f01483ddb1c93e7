"""Joins the analyses of several runs into one: every number with its mean and spread over seeds."""

from collections.abc import Mapping, Sequence
from typing import Any

from spikeprune.lab.study.significance import paired, summarize
from spikeprune.record.analysis import Mechanism, SeedDifference

# They say where a number belongs; alike in runs of one arm.
_COORDINATES = ("epoch", "step", "T", "images")
# What two arms are compared by, and where it stands in an analysis.
QUANTITIES = {
    "accuracy": ("accuracy",),
    "regrown weights that outlive the next cut": ("survival", "survived_share"),
    "variance within a class, test": ("consistency", "mean_variance_test"),
    "feature cosine": ("consistency", "mean_cosine"),
    "feature cosine, centred": ("consistency", "mean_cosine_centred"),
    "loss gap at the end": ("overfitting", "final_gap"),
    "loss gap in recovery": ("overfitting", "recovery_gap"),
    "branching, pooled": ("criticality", "after_regeneration", "branching", "pooled"),
    "entropy of features": ("criticality", "after_regeneration", "mean_entropy"),
}


def over_seeds(values: Sequence[Any]) -> Any:
    """Nested values of several runs as one of the same shape, in which each number is a spread:

        {"each": the runs' numbers in their order, "n": how many there are, "mean": ..., "sd": ...}

    sd is None for n = 1. A number that no run has is None; a run that lacks a number has None in `each`. Text, truth
    values and coordinates such as an epoch stand as they are where all runs agree, else they are None; so are lists of
    unequal length.
    """
    there = [value for value in values if value is not None]
    if not there:
        return None
    if all(isinstance(value, Mapping) for value in there):
        keys = dict.fromkeys(key for value in there for key in value)
        mixed = {key: [None if value is None else value.get(key) for value in values] for key in keys}
        return {key: _alike(each) if key in _COORDINATES else over_seeds(each) for key, each in mixed.items()}
    if all(isinstance(value, list) for value in there):
        if len({len(value) for value in there}) > 1:
            return None
        return [over_seeds([None if v is None else v[i] for v in values]) for i in range(len(there[0]))]
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in there):
        found = summarize(there)
        return {"each": list(values), "n": found.n, "mean": found.mean, "sd": found.sd}
    return _alike(values)


def _alike(values: Sequence[Any]) -> Any:
    return values[0] if all(value == values[0] for value in values) else None


def differences(mine: Mapping[int, Mechanism], theirs: Mapping[int, Mechanism]) -> dict[str, SeedDifference | None]:
    """mine - theirs for each of `QUANTITIES`, over the seeds that both have, with a 95 % t interval and a t-test.

    Args:
        mine, theirs: seed -> analysis of its run.
    Returns: quantity -> its difference; None where no seed has it on both sides.
    """
    found: dict[str, SeedDifference | None] = {}
    for name, path in QUANTITIES.items():
        sides = [
            {seed: value for seed, part in side.items() if (value := at(part, path)) is not None}
            for side in (mine, theirs)
        ]
        test = paired(*sides)
        if test is None:
            found[name] = None
            continue
        seeds = sorted(set(sides[0]) & set(sides[1]))
        d = test.difference
        found[name] = SeedDifference(
            seeds=tuple(seeds),
            each=tuple(sides[0][seed] - sides[1][seed] for seed in seeds),
            n=d.n,
            mean=d.mean,
            sd=d.sd,
            half=d.half,
            p=test.t_p,
        )
    return found


def at(part: Any, path: Sequence[str]) -> Any:
    """The value at `path` in an analysis. None if a part of the path is None."""
    for key in path:
        part = None if part is None else part[key]
    return part
