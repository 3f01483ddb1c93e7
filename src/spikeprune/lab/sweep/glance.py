"""Counts the runs of a plain sweep of a shipped recipe without torch, so that a job script is printed in a moment.

A sweep is plain if only keys of `_PLAIN` are given, each with values that any recipe takes. Such values never make two
runs the same, so the runs are counted and not built. Everything else is left to `read_sweep`, wrong values as well.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from spikeprune import zoo
from spikeprune.host.catalogue import recipe_heads, registrations

DENSE: Final = "dense"
PLURALS: Final = {
    "methods": "method", "sparsities": "sparsity", "seeds": "seed", "datasets": "data.name", "models": "model",
}  # fmt: skip


def count_runs(source: str, overrides: Sequence[str]) -> int | None:
    """Number of runs of the sweep, as `read_sweep` would list them; None if it is no plain one."""
    given = _given(overrides)
    if given is None or source not in recipe_heads():
        return None
    methods = given.pop("method", ["that of the recipe"])
    baseline = given.pop("baseline", ["true"])
    sparsities = given.pop("sparsity", ["0.5"])
    pruning = [method for method in methods if method != DENSE]
    runs = len(pruning) * len(sparsities) + (baseline == ["true"] or DENSE in methods)
    for values in given.values():
        runs *= len(values)
    return runs or None


def _given(overrides: Sequence[str]) -> dict[str, list[str]] | None:
    """Key -> its distinct values, None if there is a key or a value that is not plain."""
    found: dict[str, list[str]] = {}
    words = list(overrides)
    while words:
        word = words.pop(0)
        key, equals, text = word.removeprefix("--").partition("=")
        if not word.startswith("--") or (not equals and not words):
            return None
        text = text if equals else words.pop(0)
        key = PLURALS.get(key, key)
        values = text.split(",")
        if key not in _PLAIN or key in found or len(set(values)) < len(values):
            return None
        if (key in _SINGLE and len(values) > 1) or not _PLAIN[key](values):
            return None
        found[key] = values
    return found


def _methods(values: Sequence[str]) -> bool:
    read = registrations("methods", "SPIKEPRUNE_METHODS", "spikeprune.methods")
    return read is not None and {*values} <= {each.name for each in read}


def _datasets(values: Sequence[str]) -> bool:
    read = registrations("data", "SPIKEPRUNE_DATASETS", "spikeprune.datasets")
    return read is not None and {*filter(_not_own, values)} <= {each.name for each in read}


def _models(values: Sequence[str]) -> bool:
    return {*filter(_not_own, values)} <= {*zoo.names()}


def _not_own(text: str) -> bool:
    """Whether a text is no `package.module:function` of the user's own."""
    return re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", text) is None


def _match(pattern: str) -> Callable[[Sequence[str]], bool]:
    return lambda values: all(re.fullmatch(pattern, text) for text in values)


# Numbers are taken in one spelling each, so that two texts are two values.
_COUNT: Final = _match(r"[1-9]\d{0,5}")
_SHARE: Final = _match(r"0\.\d{0,5}[1-9]")
_PATH: Final = _match(r"[\w./-]+")
_PLAIN: Final[Mapping[str, Callable[[Sequence[str]], bool]]] = {
    "method": _methods,
    "sparsity": _SHARE,
    "seed": _match(r"0|[1-9]\d{0,5}"),
    "data.name": _datasets,
    "model": _models,
    "epochs": _COUNT,
    "batch": _COUNT,
    "T": _COUNT,
    "data.limit": _COUNT,
    "lr": _SHARE,
    "baseline": _match("true|false"),
    "data.root": _PATH,
    "out": _PATH,
}
_SINGLE: Final = ("baseline", "data.root", "out")
