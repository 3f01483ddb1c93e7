"""What deciding the masks costs: CPU seconds of each arm against those of criticality, from `spikeprune compare`."""

from collections.abc import Mapping, Sequence

from spikeprune.lab.study.compare import Arm, Comparison
from spikeprune.lab.study.significance import MARGIN

PARTS = ("cost", "deep_cost")
HEADS = (
    "arm", "seeds", "accuracy %", "minus criticality's", "reaches it", "search s", "search ratio", "total s",
    "total ratio", "pruning s",
)  # fmt: skip
Ratios = tuple[float, float]


def section(found: Mapping[str, Comparison]) -> list[str]:
    """The tables as Markdown; empty without results."""
    lines: list[str] = []
    for name in PARTS:
        for model, rows in _networks(found, name).items():
            base = base_of(rows)
            if base is not None:
                lines += [f"### {name}, {model}", "", _row(HEADS), "|---" + "|--:" * (len(HEADS) - 1) + "|"]
                lines += [_row(_cells(row, base)) for row in rows] + [""]
    if not lines:
        return []
    return [
        "## What deciding the masks costs, in CPU seconds",
        "",
        "Search seconds go to the last change of a mask, total seconds to the end of training; both include the "
        "training that they need. A ratio divides an arm's seconds by those of criticality. Pruning seconds are those "
        "inside mask updates and upkeep alone. An arm reaches the accuracy of criticality if its mean is not more than "
        f"{100 * MARGIN:g} points below.",
        "",
        *lines,
    ]


def ratios(found: Mapping[str, Comparison], name: str, label: str) -> Ratios | None:
    """An arm's search and total seconds over those of criticality, mean over networks; None without results."""
    pairs = []
    for rows in _networks(found, name).values():
        base, arm = base_of(rows), next((row for row in rows if row.label == label), None)
        if base is not None and arm is not None:
            pairs.append((_ratio(arm, base, "search_seconds"), _ratio(arm, base, "seconds")))
    if not pairs:
        return None
    return sum(p[0] for p in pairs) / len(pairs), sum(p[1] for p in pairs) / len(pairs)


def base_of(rows: Sequence[Arm]) -> Arm | None:
    """The arm that ratios are taken to."""
    return next((row for row in rows if row.label == "criticality"), None)


def _networks(found: Mapping[str, Comparison], name: str) -> dict[str, list[Arm]]:
    rows = [row for row in (found[name].rows if name in found else ()) if row.target is not None]
    return {model: [row for row in rows if row.model == model] for model in dict.fromkeys(r.model for r in rows)}


def _ratio(arm: Arm, base: Arm, quantity: str) -> float:
    return arm.values[quantity].mean / base.values[quantity].mean


def _cells(row: Arm, base: Arm) -> tuple[str, ...]:
    difference = 100 * (row.values["accuracy"].mean - base.values["accuracy"].mean)
    reaches = "yes" if difference >= -100 * MARGIN else "no"
    half = row.values["accuracy"].half
    return (
        row.label,
        str(len(row.seeds)),
        f"{100 * row.values['accuracy'].mean:.2f}" + ("" if half is None else f" ± {100 * half:.2f}"),
        "-" if row is base else f"{difference:+.2f}",
        "-" if row is base else reaches,
        f"{row.values['search_seconds'].mean:.1f}",
        f"{_ratio(row, base, 'search_seconds'):.2f}",
        f"{row.values['seconds'].mean:.1f}",
        f"{_ratio(row, base, 'seconds'):.2f}",
        f"{row.values['pruning_seconds'].mean:.2f}",
    )


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"
