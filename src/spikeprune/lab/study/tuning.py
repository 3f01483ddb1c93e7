"""Settings chosen for each arm of a study: the same small grid for all, judged on held-out training images."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from spikeprune.core.errors import UserError
from spikeprune.lab.sweep.sweep import Sweep, Task


@final
@dataclass(frozen=True)
class Tried:
    """One point of the grid: its settings, and its mean accuracy over seeds on held-out images."""

    keys: Mapping[str, Any]
    accuracy: float
    seeds: tuple[int, ...]


def tried(sweep: Sweep, varied: tuple[str, ...]) -> dict[str, list[Tried]]:
    """Arm -> the points of its grid, the best first; of equal ones the earlier.

    Args:
        sweep: of `read_tuning`, all of its runs finished.
        varied: the keys of the grid.
    Raises: UserError naming a run that is not finished, or that held out no images.
    """
    found: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for task in sweep.tasks:
        keys = {key: _value(task, key) for key in varied}
        found.setdefault(task.label, {}).setdefault(json.dumps(keys), []).append((task.recipe.seed, _judged(task)))
    return {
        label: sorted(
            (
                Tried(json.loads(keys), sum(a for _, a in seen) / len(seen), tuple(seed for seed, _ in seen))
                for keys, seen in points.items()
            ),
            key=lambda point: -point.accuracy,
        )
        for label, points in found.items()
    }


def as_dict(found: Mapping[str, list[Tried]]) -> dict[str, Any]:
    """The chosen settings as a sweep reads them under `tuned`, and all settings that were tried."""
    return {
        "chosen by": "accuracy of the last epoch on held-out training images, mean over seeds; never the test split",
        "arms": {label: dict(points[0].keys) for label, points in found.items()},
        "tried": {
            label: [{**point.keys, "accuracy": point.accuracy, "seeds": list(point.seeds)} for point in points]
            for label, points in found.items()
        },
    }


def _value(task: Task, key: str) -> Any:
    group, _, name = key.rpartition(".")
    owner = getattr(task.recipe, group) if group else task.recipe
    return getattr(owner, name) if hasattr(owner, name) else task.recipe.settings[key]


def _judged(task: Task) -> float:
    file = task.folder.metrics
    if not task.finished:
        raise UserError(f"the run {task.folder.path.name} is not finished; the sweep's command goes on with it")
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    accuracy = [line["val_accuracy"] for line in lines if line["phase"] == "pruned"][-1]
    if accuracy is None:
        raise UserError(
            f"the run {task.folder.path.name} held out no images to choose by; give the grid data.validation: 0.1"
        )
    return float(accuracy)
