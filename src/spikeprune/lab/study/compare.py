"""Runs side by side: grouped by their settings but the seed, with intervals, paired tests and what each arm cost."""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from spikeprune.core.errors import UserError, unknown
from spikeprune.lab.recipe import deciding
from spikeprune.lab.study.collected import BLOCK, ComparedRun, block_of, collect
from spikeprune.lab.study.significance import Paired, Summary, holm, paired, summarize
from spikeprune.lab.sweep.sweep import DENSE
from spikeprune.lab.train.folder import RunFolder, read_safetensors
from spikeprune.record.run import Environment

__all__ = ["COST", "MEASURED", "Arm", "Block", "ComparedRun", "Comparison", "collect", "compare", "from_dict"]
__all__ += ["grouped"]
SCHEMA = 2
MEASURED = ("accuracy", "synops", "macs", "energy_pj", "firing_rate", "bytes", "alive")
COST = (
    "search_epochs", "epochs", "train_macs", "train_macs_effective", "search_seconds", "seconds", "pruning_seconds",
)  # fmt: skip
_BUDGET = ("epochs", "batch", "T", "data.name", "data.limit", "data.test_limit", "data.validation")
_APART = ("pattern", "budget", *_BUDGET)
# Numbers of a result do not depend on whether a dense network was trained beside.
_ASIDE = ("seed", "baseline", *BLOCK, "sparsity")


@final
@dataclass(frozen=True)
class Arm:
    """Runs that differ in the seed alone.

    Attributes:
        target: the sparsity that it is compared at; None for dense.
        accuracies: of each seed, in the order of `seeds`.
        values: quantity -> its summary over seeds; quantities of `MEASURED`, `sparsity` and `COST`.
        survived: share of the regrown weights that the next magnitude cut kept; None where nothing was regrown.
        versus: accuracy minus that of the reference, by seed; None for the reference itself or without common seeds.
        equal_budget: whether epochs, batch, T and data are the reference's; None without one.
        settings: `group.key` -> value, the same for all of its seeds.
        images: split -> how many.
        delivered: what regrowth brought, mean over seeds: weights regrown and alive at the end, weights regrown in all,
            filters that hold one alive at the end; None where nothing was regrown.
        machines: processor, threads, precision and versions, each way that occurs.
    """

    label: str
    method: str
    dataset: str
    model: str
    target: float | None
    seeds: tuple[int, ...]
    accuracies: tuple[float, ...]
    values: Mapping[str, Summary]
    survived: Summary | None
    versus: Paired | None
    equal_budget: bool | None
    settings: Mapping[str, object]
    images: Mapping[str, int]
    machines: tuple[str, ...]
    runs: tuple[str, ...]
    delivered: tuple[float, float, float] | None = None

    @property
    def tested(self) -> bool:
        """Whether it is one of the tests that Holm's correction counts."""
        return self.versus is not None and self.versus.t_p is not None


@final
@dataclass(frozen=True)
class Block:
    """One table: the rows of one data set, model and target sparsity, the dense ones first, then by mean accuracy.

    Its comparisons with the reference are one family of tests: Holm's correction is for these and no others.
    """

    dataset: str
    model: str
    target: float | None
    rows: tuple[Arm, ...]

    @property
    def title(self) -> str:
        return f"{self.dataset}, {self.model}, " + ("dense" if self.target is None else f"sparsity {self.target:g}")

    @property
    def tests(self) -> int:
        """The number of tests that are corrected together.

        Dense rows stand in every block, so their tests count only in their own.
        """
        return sum(row.tested for row in self.rows if row.target == self.target)


@final
@dataclass(frozen=True)
class Comparison:
    """All rows, block by block, and the reference: the arm compared with."""

    reference: str | None
    rows: tuple[Arm, ...]
    unfinished: int

    @property
    def blocks(self) -> list[Block]:
        """The tables; dense rows stand on top of each of their data set and model."""
        found: dict[tuple[str, str, float | None], list[Arm]] = {}
        for row in self.rows:
            found.setdefault((row.dataset, row.model, row.target), []).append(row)
        dense = {(d, m): rows for (d, m, target), rows in found.items() if target is None}
        blocks = [Block(d, m, t, (*dense.get((d, m), ()), *rows)) for (d, m, t), rows in found.items() if t is not None]
        shown = {(block.dataset, block.model) for block in blocks}
        return blocks + [Block(d, m, None, tuple(rows)) for (d, m), rows in dense.items() if (d, m) not in shown]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` reads them."""
        return {
            "schema": SCHEMA,
            "reference": self.reference,
            "interval": "mean and half the width of the 95 % t interval over seeds",
            "families": [{"table": block.title, "tests": block.tests} for block in self.blocks],
            "unfinished": self.unfinished,
            "rows": [dataclasses.asdict(row) for row in self.rows],
        }


def from_dict(found: Mapping[str, Any]) -> Comparison:
    """The comparison that `spikeprune compare --json` wrote.

    Raises: UserError if it is not of this form.
    """
    try:
        if found["schema"] != SCHEMA:
            raise ValueError(f"its schema is {found['schema']}, not {SCHEMA}")
        rows = tuple(_row_from(dict(row)) for row in found["rows"])
        return Comparison(found["reference"], rows, found["unfinished"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"this is no comparison ({error}); `spikeprune compare RUNS --json > FILE` writes one"
        ) from error


def _row_from(row: dict[str, Any]) -> Arm:
    versus, survived = row["versus"], row["survived"]
    read: dict[str, Any] = {key: tuple(row[key]) for key in ("seeds", "accuracies", "machines", "runs")}
    read["values"] = {name: Summary(**summary) for name, summary in row["values"].items()}
    read["survived"] = None if survived is None else Summary(**survived)
    if row.get("delivered") is not None:
        read["delivered"] = tuple(row["delivered"])
    read["versus"] = None if versus is None else Paired(**versus | {"difference": Summary(**versus["difference"])})
    return Arm(**row | read)


def compare(runs: Sequence[ComparedRun], reference: str | None = None, unfinished: int = 0) -> Comparison:
    """Group the runs and test each group against the reference at its sparsity.

    Runs that differ in the seed alone are one row. Rows of one data set, model and target sparsity are a block; in it
    each row is paired with the reference by seed, and its tests are one family for Holm's correction. A dense row
    stands in every block of its data set and model.

    Args:
        reference: a label or a method. Without it the dense row is the reference; if there is none, nothing is tested.
        unfinished: number of runs that are not finished, to be reported.
    Raises: UnknownName for a reference that is no row.
    """
    rows = _groups(runs)
    labels = _labels(rows)
    named = list(dict.fromkeys(labels))
    if reference is None and DENSE in labels:
        reference = DENSE
    if reference is not None and not any(
        reference in (label, group[0].label) for label, group in zip(labels, rows, strict=True)
    ):
        raise unknown("reference", reference, named, f"(the rows are {', '.join(named)[:120]})")
    families: dict[Any, list[Arm]] = {}
    for group, label in zip(rows, labels, strict=True):
        row = _row(group, label, _reference(group, rows, labels, reference))
        families.setdefault((block_of(group[0]), row.target), []).append(row)
    corrected = [row for family in families.values() for row in _corrected(family)]
    return Comparison(reference, tuple(corrected), unfinished)


def _corrected(family: Sequence[Arm]) -> list[Arm]:
    """The rows of one table with Holm's p for the tests of this table, the most accurate first."""
    p_values = holm([row.versus.t_p if row.versus else None for row in family])
    rows = [
        dataclasses.replace(row, versus=dataclasses.replace(row.versus, holm_p=p)) if row.versus else row
        for row, p in zip(family, p_values, strict=True)
    ]
    return sorted(rows, key=lambda row: -row.values["accuracy"].mean)


def grouped(runs: Sequence[ComparedRun]) -> dict[str, list[ComparedRun]]:
    """Runs that differ in the seed alone, by the name of their arm and what sets it apart."""
    groups = _groups(runs)
    names = _labels(groups)
    twice = {name for name in names if names.count(name) > 1}
    return {
        f"{name}, {group[0].settings['model']}, sparsity {group[0].target:g}" if name in twice else name: group
        for name, group in zip(names, groups, strict=True)
    }


def _groups(runs: Sequence[ComparedRun]) -> list[list[ComparedRun]]:
    groups: dict[str, list[ComparedRun]] = {}
    for run in runs:
        key = json.dumps(
            [run.label, None if _dense(run) else run.target, run.settings | {"seed": 0, "baseline": False}],
            sort_keys=True,
        )
        groups.setdefault(key, []).append(run)
    return sorted(groups.values(), key=_order)


def _dense(run: ComparedRun) -> bool:
    return run.record.settings.method == DENSE


def _order(group: Sequence[ComparedRun]) -> tuple[Any, ...]:
    run = group[0]
    flat = deciding(run.record.settings)
    return flat["data.name"], flat["data.limit"] or 0, flat["model"], -1.0 if _dense(run) else run.target


def _labels(groups: Sequence[Sequence[ComparedRun]]) -> list[str]:
    """The arm's name, and where groups of one arm stand in one block the keys in which they differ.

    Groups at other sparsities get those keys that keep them from one line of a figure: the pattern and the budget.
    """
    names = []
    for group in groups:
        run = group[0]
        same = [o[0] for o in groups if (o[0].label, block_of(o[0])) == (run.label, block_of(run))]
        alike = [other.settings for other in same if _dense(run) or other.target == run.target]
        mine = run.settings
        varied = [
            key
            for key in mine
            if key not in _ASIDE
            and (
                any(other.get(key) != mine[key] for other in alike)
                or (key in _APART and any(other.settings.get(key) != mine[key] for other in same))
            )
        ]
        names.append(", ".join([run.label, *(f"{key}={mine[key]}" for key in varied)]))
    return names


def _reference(
    group: Sequence[ComparedRun], groups: Sequence[Sequence[ComparedRun]], labels: Sequence[str], reference: str | None
) -> Sequence[ComparedRun] | None:
    """The reference's runs in the group's block; where several would do, those with the nearest settings."""
    if reference is None:
        return None
    run = group[0]
    able = [
        other
        for other, label in zip(groups, labels, strict=True)
        if reference in (label, other[0].label)
        and block_of(other[0]) == block_of(run)
        and (_dense(other[0]) or (not _dense(run) and other[0].target == run.target))
    ]
    if any(other is group for other in able):
        return None
    mine = run.settings
    return min(able, key=lambda other: sum(mine.get(k) != v for k, v in other[0].settings.items()), default=None)


def _row(group: Sequence[ComparedRun], label: str, reference: Sequence[ComparedRun] | None) -> Arm:
    group = sorted(group, key=lambda run: (run.seed, str(run.path)))
    once = {run.seed: run for run in reversed(group)}  # the same run made in two places counts once
    group = [once[seed] for seed in sorted(once)]
    first = group[0]
    values = {name: summarize([getattr(run.record.pruned, name) for run in group]) for name in MEASURED}
    values["sparsity"] = summarize([run.record.sparsity for run in group])
    values |= {name: summarize([getattr(run.record.cost, name) for run in group]) for name in COST}
    versus, equal = None, None
    if reference is not None:
        versus = paired(_accuracies(group), _accuracies(reference))
        theirs, mine = reference[0].settings, first.settings
        equal = all(mine.get(key) == theirs.get(key) for key in _BUDGET)
    flat = deciding(first.record.settings)
    return Arm(
        label=label,
        method=str(flat["method"]),
        dataset=str(flat["data.name"]) + (f" ({flat['data.limit']:,} images)" if flat["data.limit"] else ""),
        model=str(flat["model"]),
        target=None if _dense(first) else first.target,
        seeds=tuple(run.seed for run in group),
        accuracies=tuple(_accuracies(group).values()),
        values=values,
        survived=_survived(group),
        versus=versus,
        equal_budget=equal,
        settings={key: value for key, value in first.settings.items() if key not in ("seed", "baseline")},
        images=dict(first.record.data.counts),
        machines=tuple(sorted({_machine(run.record.environment) for run in group})),
        runs=tuple(run.path.name for run in group),
        delivered=_delivered(group),
    )


def _delivered(group: Sequence[ComparedRun]) -> tuple[float, float, float] | None:
    """The numbers of `Arm.delivered`. None if a run has no file that tells which of its weights were regrown.

    None for channels too: mask updates count channels there, and the file holds weights.
    """
    if any(run.settings.get("pattern") in ("channel", "gate") for run in group):
        return None
    files = [RunFolder(run.path).regrown for run in group]
    regrown = sum(update.regrown for run in group for update in run.record.rounds)
    if not regrown or not all(file.is_file() for file in files):
        return None
    masks = [mask for file in files for mask in read_safetensors(file).values()]
    alive = sum(int(mask.sum()) for mask in masks)
    filters = sum(int(mask.flatten(1).any(1).sum()) if mask.dim() > 1 else int(mask.sum()) for mask in masks)
    return alive / len(group), regrown / len(group), filters / len(group)


def _accuracies(group: Iterable[ComparedRun]) -> dict[int, float]:
    return {run.seed: run.record.accuracy for run in group}


def _survived(group: Iterable[ComparedRun]) -> Summary | None:
    """Over seeds, of regrown / survived of all events that a later cut judged."""
    shares = []
    for run in group:
        judged = [(update.regrown, update.survived) for update in run.record.rounds if update.survived is not None]
        regrown = sum(came_back for came_back, _ in judged)
        if regrown:
            shares.append(sum(survived for _, survived in judged) / regrown)
    return summarize(shares) if shares else None


def _machine(environment: Environment) -> str:
    threads = environment.threads
    versions = ", ".join(f"{name} {environment.versions.get(name)}" for name in ("spikeprune", "torch"))
    return f"{environment.device}, {threads} thread{'s' * (threads != 1)}, {environment.precision}; {versions}"
