"""Makes docs/study.md, its pictures and the pages of analyses from study/results: `python study/page.py`.

A result is what `spikeprune compare SWEEP.json --json` prints; the words about it are the comment on top of
study/NAME.yaml, and what follows from all of it is study/conclusions.md, put in as it stands.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import abstract
import figures
import price

from spikeprune.core.errors import UserError
from spikeprune.lab.page import analysis
from spikeprune.lab.page.charts import Difference, Series, forest, front, picture, plot
from spikeprune.lab.study import claims, tables
from spikeprune.lab.study.compare import Arm, Block, Comparison, from_dict
from spikeprune.record.analysis import AnalysisRecord

ROOT = Path(__file__).parents[1]
ORDER = (
    "fashion", "cifar10", "never_dense", "never_dense_cifar10", "confirm", "confirm_cifar10", "equal_macs", "options",
    "mechanism", "compute", "extremes", "extremes_cifar10", "ablations", "time_steps", "rivals", "lottery",
    "recovery_digits", "recovery", "cost", "deep_lr", "deep", "deep_channels", "deep_more", "deep_channels_more",
    "deep_cifar100", "deep_steps", "deep_cost", "deep_rules", "deep_gpu", "deep_channels_gpu",
)  # fmt: skip
HEAD = """# The study
"""
ABOUT = """\
Is regrowth worth it, by which rule, and at what cost? Every number here comes from the run folders of one command each,
by way of `spikeprune compare` and `python study/page.py`, which makes this page from [study/results](../study/results):
do not edit it. There each row has its accuracy seed by seed and all of its settings.

What is kept when a trained network is made small without any training has a page of its own:
[what squeeze keeps](squeeze.md).
"""

SUMMARY = "**In five sentences.**"


def pages(root: Path = ROOT) -> dict[Path, str]:
    """Every file of the page with its text.

    Raises: UserError if there is no result, or one cannot be read.
    """
    files = {path.stem: path for path in sorted((root / "study" / "results").glob("*.json"))}
    if not files:
        raise UserError("study/results holds no result; `spikeprune compare SWEEP.json --json > FILE` makes one")
    names = [name for name in ORDER if name in files] + [name for name in files if name not in ORDER]
    found = {name: from_dict(json.loads(files[name].read_text(encoding="utf-8"))) for name in names}
    summary, details = _conclusions(root / "study" / "conclusions.md")
    lines = [HEAD, *summary, ABOUT, *abstract.section(found, root)]
    if details:
        lines += ["## What it says", "", details, ""]
    lines += ["## How to read the tables", "", *(f"- {note}" for note in _notes(found.values())), ""]
    made: dict[Path, str] = {}
    for name, comparison in found.items():
        lines += [f"## {name}", "", *_about(root / "study" / f"{name}.yaml")]
        for number, block in enumerate(comparison.blocks, 1):
            image = f"study-{name}-{number}.svg"
            images = root / "docs" / "images"
            made[images / image] = _picture(block)
            differences = _differences(comparison, block)
            if differences:
                made[images / image.replace(".svg", "-differences.svg")] = differences
            lines += _part(comparison, block, image, bool(differences))
    for structure, picture_of in figures.deep(found).items():
        made[root / "docs" / "images" / f"study-{structure}.svg"] = picture_of
    lines += [*figures.section(found), *price.section(found)]
    lines += ["## The paper's factors of cost", "", *(f"- {line}" for line in claims.explanation()), ""]
    for file in (root / "study" / "results").glob("*/analysis.json"):
        made[file.with_suffix(".html")] = analysis.page(AnalysisRecord.of_file(file))
    return {root / "docs" / "study.md": "\n".join(lines), **made}


def _conclusions(path: Path) -> tuple[list[str], str]:
    """The lines that open the page, if the first paragraph is called a summary, and the rest of the conclusions."""
    said = path.read_text(encoding="utf-8").strip() if path.is_file() else ""
    first, _, rest = said.partition("\n\n")
    return ([first, ""], rest) if first.startswith(SUMMARY) else ([], said)


def _notes(comparisons: Iterable[Comparison]) -> list[str]:
    """What the tables have in common, said once."""
    return list(dict.fromkeys(note for comparison in comparisons for note in tables.notes(comparison)))


def _about(recipe: Path) -> list[str]:
    """The comment on top of a sweep's file, its commands set apart, and where the file is."""
    if not recipe.is_file():
        return []
    text, commands = [], []
    for line in recipe.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        (commands if line.startswith("#   ") else text).append(line.removeprefix("#").strip())
    where = f"Arms and all settings: [study/{recipe.name}](../study/{recipe.name})."
    return [*text, "", where, "", "```sh", *commands, "```", ""]


def _part(comparison: Comparison, block: Block, image: str, differences: bool) -> list[str]:
    """Setting, results, pictures and costs of one table."""
    caption = "Pruned arms: accuracy over the MACs of training, with credit for zeros, and over the SynOps of an image"
    return [
        f"### {block.title}",
        "",
        *_setting(block),
        "",
        *_table(tables.main_table(comparison, block.rows)),
        "",
        tables.family(comparison, block),
        "",
        *(
            [
                f"![Accuracy minus that of {comparison.reference}, paired by seed: mean, 95 % interval (of the single "
                f"comparison) and seeds; arrows are rows far off.](images/{image.replace('.svg', '-differences.svg')})",
                "",
            ]
            if differences
            else []
        ),
        f"![{caption}; mean and 95 % interval over seeds. Dotted: no arm is better at less.](images/{image})",
        "",
        "What it cost:",
        "",
        *_table([tables.COST_HEADS, *map(tables.cost_cells, block.rows)]),
        "",
    ]


def _setting(block: Block) -> list[str]:
    """What the rows have in common, in words, and which rows have it otherwise; the rest is in the sweep's file."""
    rows, first = block.rows, block.rows[0]
    keys = ("epochs", "T", "batch", "lr", "optim.weight_decay", "precision")
    images = ", ".join(f"{count:,} {split}" for split, count in first.images.items() if count)
    seeds = sorted({seed for row in rows for seed in row.seeds})
    machines = dict.fromkeys(machine for row in rows for machine in row.machines)
    return [
        f"- images: {images}; network: `{block.model}`",
        "- " + ", ".join(_common(key, rows) for key in keys),
        f"- seeds: {', '.join(map(str, seeds))}",
        f"- made on: {' / '.join(machines)}",
    ]


def _common(key: str, rows: Sequence[Arm]) -> str:
    """`epochs 5 (1: magnitude in 1 epoch)`: the value that most rows have, then those that have another."""
    values = [row.settings[key] for row in rows]
    most = max(values, key=values.count)
    others = [f"{value}: {row.label}" for row, value in zip(rows, values, strict=True) if value != most]
    name = key.rpartition(".")[2].replace("_", " ")
    return f"{name} {most}" + (f" ({'; '.join(others)})" if others else "")


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return [lines[0], "|---" + "|--:" * (len(rows[0]) - 1) + "|", *lines[1:]]


def _picture(block: Block) -> str:
    """The dense rows are left out: they lie so far off that all others would fall together."""
    rows = [row for row in block.rows if row.target is not None] or list(block.rows)

    def points(quantity: str) -> list[Series]:
        return [Series(row.label, ((row.values[quantity].mean, _percent(row)),), (_half(row),)) for row in rows]

    axes = {"train_macs_effective": "MACs of training, with credit for zeros", "synops": "SynOps an image"}
    panels = []
    for quantity, name in axes.items():
        series = points(quantity)
        best = front([point for one in series for point in one.points])
        panels.append(plot(series, name, "accuracy, %", log=True, marked=best))
    return picture(panels, [row.label for row in rows])


def _differences(comparison: Comparison, block: Block) -> str:
    """A forest plot of the pruned arms against the reference; empty where nothing is paired."""
    reference = next((row for row in block.rows if row.label == comparison.reference), None)
    if reference is None:
        return ""
    base = dict(zip(reference.seeds, reference.accuracies, strict=True))
    rows = [
        Difference(
            row.label,
            100 * row.versus.difference.mean,
            None if row.versus.difference.half is None else 100 * row.versus.difference.half,
            tuple(100 * (a - base[s]) for s, a in zip(row.seeds, row.accuracies, strict=True) if s in base),
        )
        for row in block.rows
        if row.versus is not None and row.target is not None
    ]
    return forest(rows, f"accuracy minus that of {comparison.reference}, points") if rows else ""


def _percent(row: Arm) -> float:
    return 100 * row.values["accuracy"].mean


def _half(row: Arm) -> float:
    return 100 * (row.values["accuracy"].half or 0.0)


def main() -> None:
    """Write all of them."""
    for path, text in pages().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
