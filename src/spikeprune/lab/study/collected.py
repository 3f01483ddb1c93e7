"""The finished runs that a comparison is made of, found in run folders, folders of them, and files of sweeps."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from spikeprune.core.errors import UnknownName, UserError
from spikeprune.lab.recipe import deciding
from spikeprune.lab.recipe.method import method_settings
from spikeprune.lab.sweep.sweep import DENSE, UNUSED_BY_DENSE
from spikeprune.lab.train.folder import RunFolder
from spikeprune.methods import settings_of
from spikeprune.record.base import whole
from spikeprune.record.run import RunRecord

BESIDE = " (dense)"  # ends the name of a dense network that a run trained beside its pruned one
BLOCK = ("data.name", "data.limit", "model")  # they tell comparisons apart, rather than arms within one


@final
@dataclass(frozen=True)
class ComparedRun:
    """A finished run. `label` and `target` are those of its sweep, or its method and its own sparsity."""

    path: Path
    record: RunRecord
    label: str
    target: float

    @property
    def seed(self) -> int:
        return self.record.seed

    @property
    def settings(self) -> dict[str, object]:
        """The settings that can change a number of the result. Settings that the run's method ignores are left out."""
        flat: dict[str, object] = dict(deciding(self.record.settings))
        method = str(flat["method"])
        if method == DENSE:
            return {k: v for k, v in flat.items() if k not in UNUSED_BY_DENSE and not k.startswith("prune.")}
        try:
            regrows = "regrow" in settings_of(method)
        except UnknownName:  # a method of a package that is not installed here
            regrows = True
        return flat if regrows else {k: v for k, v in flat.items() if k not in ("regrow", "regrow_schedule")}


def block_of(run: ComparedRun) -> tuple[Any, ...]:
    """The settings that runs of one table have in common."""
    flat = deciding(run.record.settings)
    return tuple(flat[key] for key in BLOCK)


def collect(paths: Sequence[str | Path]) -> tuple[list[ComparedRun], int, str | None]:
    """The finished runs under the paths, the number of unfinished ones, and the reference that a sweep's file names.

    A dense network that a run trained beside its pruned one (`baseline: true`) is a run of its own here, once a seed.

    Args:
        paths: run folders, folders of run folders, or the file that a sweep wrote beside its runs.
    Raises: UserError if there is no finished run, or a file is damaged.
    """
    folders: dict[Path, None] = {}
    labels: dict[str, tuple[str, float]] = {}
    reference: str | None = None
    missing = 0
    for path in map(Path, paths):
        if path.suffix == ".json" and path.is_file():
            listed = _listed(path)
            reference = listed["reference"] or reference
            for entry in listed["runs"]:
                labels[entry["hash"]] = (entry["label"], entry["target"])
                there = [p for p in sorted(path.parent.glob(f"*-{entry['hash']}")) if (p / "record.json").is_file()]
                missing += not there
                folders |= dict.fromkeys(there[:1])
        elif (path / "recipe.yaml").is_file():
            folders[RunFolder.existing(path).path] = None
        elif path.is_dir():
            for file in sorted(path.glob("sweep-*.json")):
                listed = _listed(file)
                reference = listed["reference"] or reference
                labels |= {entry["hash"]: (entry["label"], entry["target"]) for entry in listed["runs"]}
            inside = sorted(entry for entry in path.iterdir() if (entry / "recipe.yaml").is_file())
            whole = [entry for entry in inside if (entry / "record.json").is_file()]
            missing += len(inside) - len(whole)
            folders |= dict.fromkeys(whole)
        else:
            raise UserError(
                f"{path} is no run folder, folder of runs or sweep file; `spikeprune sweep` prints the latter"
            )
    runs = [_run(RunFolder(folder), labels) for folder in folders]
    if not runs:
        where = f"no finished run in {', '.join(map(str, paths))[:150]}"
        if missing:
            raise UserError(f"{where}, and {missing} begun; the command that began a run goes on with it")
        raise UserError(f"{where}; `spikeprune sweep` makes some")
    return [*runs, *_baselines(runs)], missing, reference


def _listed(path: Path) -> Any:
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
        for entry in listed["runs"]:
            if not isinstance(entry["hash"] + entry["label"], str) or not isinstance(entry["target"], float | int):
                raise TypeError(entry)
        if "reference" not in listed:
            raise KeyError("reference")
        return listed
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not the file of a sweep, or it is damaged; `spikeprune sweep` writes it anew"
        ) from error


def _run(folder: RunFolder, labels: Mapping[str, tuple[str, float]]) -> ComparedRun:
    record = folder.read_record()
    with whole(folder.record):
        label, target = labels.get(record.settings_hash, (record.settings.method, record.settings.sparsity))
        found = ComparedRun(folder.path, record, label, float(target))
        block_of(found)  # the settings that tell comparisons apart are there
        return found


def _baselines(runs: Sequence[ComparedRun]) -> list[ComparedRun]:
    """The dense networks that were trained in the same run as pruned ones, as runs of their own.

    Networks of equal settings and seed count once, and not at all if a dense run of its own has them.
    """
    there = {_key(run) for run in runs if run.record.settings.method == DENSE}
    found = {_key(dense): dense for run in reversed(runs) if (dense := _dense_beside(run)) is not None}
    return [dense for key, dense in reversed(found.items()) if key not in there]


def _key(run: ComparedRun) -> str:
    return json.dumps(run.settings | {"baseline": False}, sort_keys=True)


def _dense_beside(run: ComparedRun) -> ComparedRun | None:
    """The dense network of a run as a run of method dense; None where none was trained and scored.

    It was trained for as many steps as the run, so `train_macs` is its own cost. It has no search cost.
    """
    record = run.record
    if record.dense.accuracy is None or record.cost.dense_seconds is None or record.squeeze is not None:
        return None
    extra = {key: value for key, value in record.settings.extra.items() if key not in method_settings()}
    cost = dataclasses.replace(
        record.cost,
        seconds=record.cost.dense_seconds,
        train_macs_effective=record.cost.train_macs,
        pruning_seconds=0.0,
        search_epochs=0.0,
        search_seconds=0.0,
        latency_ms=None,
    )
    settings = dataclasses.replace(record.settings, method=DENSE, sparsity=0.0, extra=extra)
    dense = dataclasses.replace(
        record, settings=settings, pruned=record.dense, sparsity=0.0, density=1.0, rounds=(), cost=cost
    )
    return ComparedRun(run.path.with_name(f"{run.path.name}{BESIDE}"), dense, DENSE, 0.0)
