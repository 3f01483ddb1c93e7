"""A sweep: many runs from one file, each an ordinary run folder under the hash of its own settings.

The file is a recipe in which any key may hold a list. Since a run is found by its hash, nothing that is finished is
done again, and a sweep that was stopped goes on where it was.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard, cast, final

import yaml

from spikeprune.core.errors import InvalidValue, UserError
from spikeprune.lab.recipe import Recipe, from_values, read_values, settings_hash
from spikeprune.lab.sweep.glance import DENSE, PLURALS
from spikeprune.lab.train.folder import RunFolder, folder_of
from spikeprune.record.base import Json
from spikeprune.record.whole import write_whole

SCHEMA = 1
# What a dense run takes no notice of: lists of these do not multiply it.
UNUSED_BY_DENSE = (
    "sparsity", "regrow", "regrow_schedule", "allocate", "pattern", "budget", "floor", "exclude", "start",
    "regrow_exclude",
)  # fmt: skip
_LISTS = ("optim.milestones", "data.mean", "data.std")  # a list is one value of these


@final
@dataclass(frozen=True)
class Task:
    """One run of a sweep.

    Attributes:
        label: the arm that it belongs to: a method, or the name in the file of a method with settings.
        target: the sparsity at which it is compared; an arm with `keep` runs at a higher one.
        hash: of its settings.
    """

    label: str
    target: float
    recipe: Recipe
    hash: str

    @property
    def folder(self) -> RunFolder:
        """The run's folder: the existing one, whatever its name, or the one that will be made."""
        out = Path(self.recipe.out)
        there = [path for path in sorted(out.glob(f"*-{self.hash}")) if (path / "recipe.yaml").is_file()]
        return RunFolder(there[0]) if there else folder_of(self.recipe, self.hash)

    @property
    def finished(self) -> bool:
        return self.folder.record.is_file()


@final
@dataclass(frozen=True)
class Sweep:
    """All runs of one file, in the order they are made: seed by seed, so that an early stop leaves whole seeds.

    Attributes:
        reference: the arm that the table compares with.
    """

    name: str
    tasks: tuple[Task, ...]
    reference: str | None

    @property
    def file(self) -> Path:
        """The list of runs, for `spikeprune compare`; it stands beside the run folders."""
        text = json.dumps(self._listed(), sort_keys=True)
        return self.out / f"sweep-{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}.json"

    @property
    def out(self) -> Path:
        return Path(self.tasks[0].recipe.out)

    def save(self) -> None:
        """Write the list of runs."""
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make the folder {self.out}: {error.strerror}; try another --out") from error
        try:
            write_whole(self.file, json.dumps(self._listed(), indent=1).encode() + b"\n")
        except FileNotFoundError as error:  # another task of a job array wrote the same list at the same moment
            if not self.file.is_file():
                raise UserError(
                    f"cannot write {self.file}, its folder was removed meanwhile; the same command makes it again"
                ) from error

    def share(self, number: int, of: int) -> "Sweep":
        """Every `of`-th run, from the `number`-th on (counted from 1): a task of a job array."""
        return Sweep(self.name, self.tasks[number - 1 :: of], self.reference)

    def _listed(self) -> dict[str, Json]:
        runs = [
            {"hash": task.hash, "label": task.label, "target": task.target, "seed": task.recipe.seed}
            for task in self.tasks
        ]
        return {"schema": SCHEMA, "name": self.name, "reference": self.reference, "runs": runs}


def read_sweep(source: str, overrides: Sequence[str] = ()) -> Sweep:
    """The runs that a file or a shipped recipe, and what the command line adds to it, ask for.

    Beside the keys of a recipe, each of which may hold a list, the file may have
        recipe: the shipped recipe or file that it builds on
        methods, sparsities, seeds, datasets, models: other names of method, sparsity, seed, data.name, model
        arms: name -> keys that make up this arm; `keep: 0.8` lets it keep that share of what the others keep
        baseline: false leaves out the dense run of each seed, which is made once for all methods
        reference: the arm that the others are compared with
        tune: what `read_tuning` makes runs of; no run of the sweep itself depends on it
        tuned: arm -> keys chosen for it, such as {magnitude: {lr: 0.3}}; they win over the arm's own

    Args:
        overrides: `--key value`, `--key a,b` or `--key [a, b]`; methods given here stand in place of the file's arms.
    Raises: UserError as for a recipe, naming the key.
    """
    return _read(*_whole_values(source), overrides)


def _whole_values(source: str) -> tuple[str, dict[str, Any]]:
    """Name of a sweep file and its values, merged with those of the recipe that it builds on."""
    name, values = _values(source)
    base_of = values.pop("recipe", None)
    if base_of is not None:
        # The method that the base was written for is no arm of a file that names its own.
        below = {
            key: value
            for key, value in _whole_values(str(base_of))[1].items()
            if key != "method" or "arms" not in values
        }
        values = {**below, **values}
    return name, values


def _read(name: str, values: dict[str, Any], overrides: Sequence[str]) -> Sweep:
    given = _given(overrides)
    if "method" in given:
        values = {key: value for key, value in values.items() if key not in ("arms", "reference")}
    reference = given.get("reference", values.get("reference"))
    arms = _arms(values | given)
    arms |= {label: arms[label] | keys for label, keys in _chosen(values | given, arms).items()}
    ours = ("method", "arms", "baseline", "reference", "tune", "tuned")
    values = {key: value for key, value in values.items() if key not in ours}
    # What the command line gives is an override of every run, as it is for `spikeprune run`: phases follow `--epochs`.
    chosen = {key: value if _lists(value, key) else [value] for key, value in given.items() if key not in ours}
    axes = {key: value for key, value in values.items() if _lists(value, key)} | chosen
    empty = [key for key, value in axes.items() if not value]
    if empty:
        raise InvalidValue(f"{empty[0]} of the sweep is an empty list; give at least one value, as in {empty[0]}: [1]")
    whole = {key: value for key, value in values.items() if value or not _lists(value, key)}
    base = {key: value[0] if _lists(value, key) else value for key, value in whole.items()}
    tasks: dict[str, Task] = {}
    for point in _points(axes):
        for label, own in arms.items():
            for task in _tasks(name, base, point, label, own):
                tasks.setdefault(task.hash, task)
    found = tuple(tasks.values())
    if reference is not None and reference not in {task.label for task in found}:
        known = ", ".join(dict.fromkeys(task.label for task in found))
        raise InvalidValue(f"the reference {reference!r} is no arm of this sweep; its arms are {known}")
    return Sweep(name, found, None if reference is None else str(reference))


def _chosen(values: Mapping[str, Json], arms: Mapping[str, Mapping[str, Json]]) -> dict[str, dict[str, Json]]:
    """Arm -> keys chosen by tuning, from `tuned`: a mapping, or the path of a JSON file that holds one."""
    tuned: Any = values.get("tuned")
    tuned = tuned[0] if isinstance(tuned, list) and len(tuned) == 1 else tuned
    if isinstance(tuned, str):
        try:
            tuned = json.loads(Path(tuned).read_text(encoding="utf-8"))["arms"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"cannot read the tuned settings {tuned!r:.80}; the tuning of the sweep writes them"
            ) from error
    if tuned is None:
        return {}
    if not isinstance(tuned, Mapping) or not all(isinstance(keys, Mapping) for keys in tuned.values()):
        raise InvalidValue("tuned must be `arm: {key: value, ...}` or the path of a file that the tuning wrote")
    unknown_arms = [label for label in tuned if label not in arms]
    if unknown_arms:
        raise InvalidValue(f"tuned names {unknown_arms[0]!r}, which is no arm; the arms are {', '.join(arms)[:120]}")
    return {str(label): dict(keys) for label, keys in tuned.items()}


def read_tuning(source: str, overrides: Sequence[str] = ()) -> Sweep:
    """The runs that choose settings for each arm of a sweep: the same small grid for all, on held-out images.

    The file's `tune` gives the grid, such as {lr: [0.3, 0.6], seeds: [100, 101], data.validation: 0.1}; every other
    key is that of the sweep. `lab.study.tuning.best` reads the runs.

    Raises: UserError as `read_sweep`, and if the file has no `tune`.
    """
    name, values = _whole_values(source)
    tune = values.pop("tune", None)
    if not isinstance(tune, Mapping) or not tune.get("seeds") or not any(_lists(v, k) for k, v in tune.items()):
        raise InvalidValue(
            f"{source[:60]} has no tuning grid; give it, for example, tune: {{lr: [0.3, 0.6], seeds: [100], "
            "data.validation: 0.1}"
        )
    values = {k: v for k, v in values.items() if k not in ("reference", "tuned")} | {"baseline": False}
    values |= {PLURALS.get(str(key), str(key)): value for key, value in tune.items()}
    return _read(f"{name}-tune", values, overrides)


def _values(source: str) -> tuple[str, dict[str, Json]]:
    name, values = read_values(source)
    flat = {PLURALS.get(key, key): value for key, value in values.items()}
    return re.sub(r"[^\w.-]", "-", name), flat


def _given(overrides: Sequence[str]) -> dict[str, Json]:
    """Key -> value of the command line's `--key value`, as a list of one or several (`--seeds 0,1,2`)."""
    found: dict[str, Json] = {}
    rest = list(overrides)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            raise UserError(f"expected --key value, got {word!r}; lists are given as --seeds 0,1,2")
        key, equals, text = word.removeprefix("--").partition("=")
        key = key.replace("-", "_")  # --regrow-schedule is the key regrow_schedule
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise UserError(f"--{key} needs a value after it, as in --{key} VALUE or --{key} A,B")
            text = rest.pop(0)
        plain = text if text.startswith("[") or "," not in text else f"[{text}]"
        try:
            found[PLURALS.get(key, key)] = yaml.safe_load(plain)
        except yaml.YAMLError as error:
            raise InvalidValue(f"--{key} {text!r} cannot be read; write a value, or several as a,b,c") from error
    return found


def _lists(value: Json, key: str) -> TypeGuard[list[Json]]:
    """Whether a value is a list with one value for each run; a key that takes a list needs a list of lists."""
    return isinstance(value, list) and (key not in _LISTS or any(isinstance(entry, list) for entry in value))


def _arms(values: Mapping[str, Json]) -> dict[str, dict[str, Json]]:
    """Name -> own keys, the dense run first."""
    methods, named = values.get("method", []), values.get("arms", {}) or {}
    if not isinstance(named, Mapping) or not all(isinstance(own, Mapping) for own in named.values()):
        raise InvalidValue("arms of a sweep must be `name: {key: value, ...}`; see docs/guide/laboratory.md")
    methods = methods if isinstance(methods, list) else [methods]
    arms: dict[str, dict[str, Json]] = {str(method): {"method": method} for method in methods}
    arms |= {str(name): dict(own) for name, own in cast("Mapping[str, Mapping[str, Json]]", named).items()}
    if not arms:
        raise InvalidValue("the sweep names no method: give methods: [magnitude, criticality], or --methods a,b")
    if values.get("baseline", True) and not any(own.get("method") == DENSE for own in arms.values()):
        arms = {DENSE: {"method": DENSE}, **arms}
    return arms


def _points(axes: Mapping[str, Sequence[Json]]) -> Iterator[dict[str, Json]]:
    """All combinations of the lists. The seed varies slowest: first all combinations of the first seed."""
    keys = sorted(axes, key=lambda key: key != "seed")
    for chosen in itertools.product(*(axes[key] for key in keys)):
        yield dict(zip(keys, chosen, strict=True))


def _tasks(
    name: str, base: Mapping[str, Json], point: Mapping[str, Json], label: str, own: Mapping[str, Json]
) -> Iterator[Task]:
    """The runs of one arm at one combination of the lists; an arm may hold lists too."""
    lists = {key: value if _lists(value, key) else [value] for key, value in own.items()}
    for chosen in _points(lists):
        keep = chosen.pop("keep", None)
        given = {**point, **chosen, "baseline": False}
        if chosen.get("method") == DENSE:
            given = {k: v for k, v in given.items() if k not in UNUSED_BY_DENSE and not k.startswith("prune.")}
            given["sparsity"] = 0.0
        words = [f"--{key}={_text(value)}" for key, value in given.items()]
        recipe = from_values(name, base, words)
        target = recipe.sparsity
        if keep is not None:
            if isinstance(keep, bool) or not isinstance(keep, int | float) or not 0 < keep <= 1:
                raise InvalidValue(
                    f"keep of the arm {label!r} must be a share in (0, 1], got {keep!r}; as in keep: 0.8"
                )
            recipe = from_values(name, base, [*words, f"--sparsity={1 - keep * (1 - target):.12g}"])
        yield Task(label, target, recipe, settings_hash(recipe))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
