"""A comparison as text: for the terminal, CSV and LaTeX."""

import csv
import io
import textwrap
from collections.abc import Sequence

from spikeprune.lab.study.compare import COST, MEASURED, Arm, Block, Comparison
from spikeprune.lab.study.significance import MARGIN, Summary
from spikeprune.record.text import aligned, short

NONE = "-"
_WITHIN, _DELIVERED = f"p (within ±{100 * MARGIN:g})", "regrown, alive at the end"  # heads of columns
_FEW_IMAGES = 2000  # with more, one image is below 0.05 points, less than seeds differ by


def percent(summary: Summary) -> str:
    """Mean of a share in percent, with half the width of its interval where there is one: 97.46 ± 0.31.

    Equal values have none: a width of 0 would claim what a few seeds cannot show.
    """
    return f"{100 * summary.mean:.2f}" + (f" ± {100 * summary.half:.2f}" if summary.half else "")


def difference(row: Arm) -> str:
    """The difference to the reference in points: "+0.22 ± 0.20".

    If all seeds agree, "+0.28 in all 2", or "equal in all 2" for a difference of 0.
    """
    if row.versus is None:
        return NONE
    d = row.versus.difference
    if row.versus.alike:  # an interval of width 0 would claim what a few seeds cannot show
        return f"equal in all {d.n}" if d.mean == 0 else f"{100 * d.mean:+.2f} in all {d.n}"
    return f"{100 * d.mean:+.2f}" + (f" ± {100 * d.half:.2f}" if d.half is not None else "")


def p_value(p: float | None) -> str:
    """Three digits; `<.001` below."""
    return NONE if p is None else "<.001" if p < 0.001 else f"{p:.3f}"


def delivered(row: Arm) -> str:
    """The result of regrowth, mean over seeds: "2 of 195 in 1" for weights alive at the end, regrown, and filters."""
    if row.delivered is None:
        return NONE
    alive, regrown, filters = row.delivered
    return f"{alive:,.0f} of {regrown:,.0f} in {filters:,.0f}"


def budget(row: Arm) -> str:
    return {None: NONE, True: "equal", False: "UNEQUAL"}[row.equal_budget]


def cells(row: Arm) -> list[str]:
    """The row of the main table, below `heads`."""
    sd = row.values["accuracy"].sd
    return [
        row.label,
        str(len(row.seeds)),
        f"{row.values['sparsity'].mean:.4f}",
        percent(row.values["accuracy"]),
        NONE if sd is None else f"{100 * sd:.2f}",
        difference(row),
        p_value(row.versus.t_p if row.versus else None),
        p_value(row.versus.holm_p if row.versus else None),
        p_value(row.versus.wilcoxon_p if row.versus else None),
        p_value(row.versus.within_p if row.versus else None),
        delivered(row),
        NONE if row.survived is None else f"{100 * row.survived.mean:.1f}",
        short(row.values["synops"].mean),
        budget(row),
    ]


def heads(comparison: Comparison) -> list[str]:
    """The heads of the main table's columns."""
    return [
        "arm", "seeds", "sparsity", "accuracy %", "sd", f"vs {comparison.reference or NONE}", "p (t)", "p (Holm)",
        "p (Wilcoxon)", _WITHIN, _DELIVERED,
        "regrown survive %", "SynOps", "budget",
    ]  # fmt: skip


def main_table(comparison: Comparison, rows: Sequence[Arm]) -> list[list[str]]:
    """Heads and rows; a column in which no row has anything to say is left out, the budget where all are equal."""
    table = [heads(comparison), *map(cells, rows)]
    told = [any(cell not in (NONE, "equal") for cell in column[1:]) for column in zip(*table, strict=True)]
    return [[cell for cell, kept in zip(row, told, strict=True) if kept] for row in table]


def family(comparison: Comparison, block: Block) -> str:
    """A note: which tests Holm's correction covers, or why there is none, and how many points one test image is."""
    images = max((row.images.get("test", 0) for row in block.rows), default=0)
    grain = f" One test image of {images:,} is {100 / images:.2g} points." if 0 < images <= _FEW_IMAGES else ""
    pairs = [row.versus for row in block.rows if row.versus is not None]
    alike = [pair.difference for pair in pairs if pair.alike]
    equal = _equal(comparison, alike) if alike else ""
    if not block.tests:
        return (equal or _too_few(comparison, block)) + grain
    tests = "1 test" if block.tests == 1 else f"{block.tests} tests"
    said = f"p (Holm) is p (t) corrected for the {tests} against {comparison.reference} in this table."
    return said + (f" Rows without p: {equal[0].lower()}{equal[1:]}" if equal else "") + grain


def _equal(comparison: Comparison, alike: Sequence[Summary]) -> str:
    """Why there is no test of differences that are the same in all seeds."""
    seeds = max(d.n for d in alike)
    if all(d.mean == 0 for d in alike):
        return (
            f"In each of the {seeds} seeds the accuracy is exactly that of {comparison.reference}, so there is no "
            "difference to test; more seeds or more test images tell."
        )
    return (
        f"The differences to {comparison.reference} are equal in all {seeds} seeds, so they have no spread, which a "
        "test or an interval would need; more seeds or more test images tell."
    )


def _too_few(comparison: Comparison, block: Block) -> str:
    if comparison.reference is None:
        return "No test: there is no reference; name one with --reference, or add dense runs."
    if all(row.label == comparison.reference for row in block.rows):
        return f"No test: no run of another arm than {comparison.reference} is finished."
    found = max((row.versus.difference.n for row in block.rows if row.versus is not None), default=0)
    seeds = "no seed" if found == 0 else "1 seed"
    return f"No test: that takes two seeds in common with {comparison.reference}, and there is {seeds}."


COST_HEADS = [
    "arm", "search epochs", "total epochs", "train MACs, as if dense", "train MACs, effective", "search s", "total s",
    "of it pruning s",
]  # fmt: skip


def cost_cells(row: Arm) -> list[str]:
    """The row of the table of costs: search and total side by side."""
    v = row.values
    return [
        row.label,
        f"{v['search_epochs'].mean:.4g}",
        f"{v['epochs'].mean:.4g}",
        short(v["train_macs"].mean),
        short(v["train_macs_effective"].mean),
        f"{v['search_seconds'].mean:.1f}",
        f"{v['seconds'].mean:.1f}",
        f"{v['pruning_seconds'].mean:.2f}",
    ]


# What a narrow terminal is spared, first to last; --csv and --html have it all.
_SPARED = (
    "p (Wilcoxon)", "p (t)", "sd", "regrown survive %", "of it pruning s", "search s", "train MACs, as if dense",
    "sparsity", "seeds", "search epochs", "total s", "SynOps",
)  # fmt: skip


def to_text(comparison: Comparison, width: int | None = None) -> list[str]:
    """Plain lines: results and costs of each block, and what the numbers are.

    Args:
        width: of the terminal in characters; tables leave columns out to fit it. None: as wide as it takes.
    """
    lines: list[str] = []
    for block in comparison.blocks:
        lines += [block.title, *aligned(_narrowed(main_table(comparison, block.rows), width))]
        lines += [*wrapped([family(comparison, block)], width), ""]
        lines += [f"{block.title}: cost", *aligned(_narrowed([COST_HEADS, *map(cost_cells, block.rows)], width)), ""]
    return lines + wrapped(notes(comparison), width)


def wrapped(lines: Sequence[str], width: int | None) -> list[str]:
    """Sentences within a width."""
    return [part for line in lines for part in (textwrap.wrap(line, width) if width else [line])]


def folded(rows: list[list[str]], width: int | None) -> list[list[list[str]]]:
    """Splits the columns of a table into tables that fit the width. Each of them begins with the first column."""
    if width is None or max(map(len, aligned(rows))) <= width:
        return [rows]
    parts: list[list[list[str]]] = []
    for column in range(1, len(rows[0])):
        wider = [[*row, whole[column]] for row, whole in zip(parts[-1], rows, strict=True)] if parts else None
        if wider is not None and max(map(len, aligned(wider))) <= width:
            parts[-1] = wider
        else:
            parts.append([[row[0], row[column]] for row in rows])
    return parts


def _narrowed(rows: list[list[str]], width: int | None) -> list[list[str]]:
    always = ("arm", "accuracy %", "p (Holm)", "total epochs", "train MACs, effective")
    others = [head for head in rows[0] if head not in (*_SPARED, *always) and not head.startswith("vs ")]
    for head in (*others, *_SPARED):
        if width is None or max(map(len, aligned(rows))) <= width:
            break
        if head in rows[0]:
            place = rows[0].index(head)
            rows = [[*row[:place], *row[place + 1 :]] for row in rows]
    return rows


def notes(comparison: Comparison) -> list[str]:
    """Notes on how to read the columns that the table has."""
    shown = {head for block in comparison.blocks for head in main_table(comparison, block.rows)[0]}
    explained = [
        (
            "",
            "Rows by mean accuracy; ± is half the width of the 95 % t interval over seeds, sd their standard "
            "deviation; differences are paired by seed, in points.",
        ),
        (
            "p (t)",
            "p (t): paired t-test, two-sided; p (Holm): the same, corrected for the tests of its own table; p "
            "(Wilcoxon): exact signed ranks, from 6 seeds on.",
        ),
        (
            _WITHIN,
            f"{_WITHIN}: two one-sided t-tests; below 0.05 the difference is shown to be less than "
            f"{100 * MARGIN:g} points either way. The margin was fixed beforehand. Neither p small: undecided.",
        ),
        (
            _DELIVERED,
            f"{_DELIVERED}: regrown weights that are alive in the final network, of all that were regrown, and "
            "the number of filters that hold one. A difference says something of regrowth only if many live.",
        ),
        (
            "",
            "search: up to the last change of a mask; total: the whole run. MACs count forward and backward of "
            "training.",
        ),
        (
            "regrown survive %",
            "regrown survive: of the weights regrown at a mask update, those that the next magnitude cut keeps.",
        ),
    ]
    found = [note for head, note in explained if not head or head in shown]
    if any(row.equal_budget is False for row in comparison.rows):
        found.append("UNEQUAL: epochs, batch, T or data are not those of the reference, so the difference says little.")
    elif any(row.equal_budget for row in comparison.rows):
        found.append("All rows have the reference's epochs, batch, T and data.")
    untrained = [row.label for row in comparison.rows if row.values["train_macs"].mean == 0]
    if untrained:
        found.append(
            f"{', '.join(dict.fromkeys(untrained))}: 0 epochs, since a trained network was given; its own training is "
            "not counted here."
        )
    if comparison.unfinished:
        one = comparison.unfinished == 1
        found.append(f"{comparison.unfinished} run{' is' if one else 's are'} not finished and not counted.")
    return found


def runs_csv(comparison: Comparison) -> str:
    """CSV with one line for each run and unrounded numbers."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["label", "method", "dataset", "model", "target", "seed", "accuracy", "run"])
    for row in comparison.rows:
        named = [*map(_cell, (row.label, row.method, row.dataset, row.model)), row.target]
        for seed, accuracy, run in zip(row.seeds, row.accuracies, row.runs, strict=True):
            writer.writerow([*named, seed, accuracy, run])
    return file.getvalue()


def to_csv(comparison: Comparison) -> str:
    """CSV with one line for each row and unrounded numbers.

    Missing values are empty. `runs_csv` has the single runs.
    """
    names = ["sparsity", *MEASURED, *COST]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    heading = ["label", "method", "dataset", "model", "target", "seeds", "survived_mean", "survived_sd"]
    heading += [f"{name}_{part}" for name in names for part in ("mean", "sd", "ci95")]
    heading += ["reference", "pairs", "difference", "difference_sd", "difference_ci95"]
    heading += [
        "p_t",
        "p_holm",
        "p_wilcoxon",
        "p_within",
        "regrown_alive",
        "regrown",
        "regrown_filters",
        "equal_budget",
    ]
    writer.writerow(heading)
    for row in comparison.rows:
        parts = [part for n in names for part in (row.values[n].mean, row.values[n].sd, row.values[n].half)]
        versus: list[object] = [None] * 9
        if row.versus is not None:
            d = row.versus.difference
            versus = [
                None if comparison.reference is None else _cell(comparison.reference),
                d.n,
                d.mean,
                d.sd,
                d.half,
                row.versus.t_p,
                row.versus.holm_p,
                row.versus.wilcoxon_p,
                row.versus.within_p,
            ]
        survived = [None, None] if row.survived is None else [row.survived.mean, row.survived.sd]
        named = [row.label, row.method, row.dataset, row.model, row.target]
        grown = row.delivered or (None, None, None)
        writer.writerow([*named, len(row.seeds), *survived, *parts, *versus, *grown, row.equal_budget])
    return file.getvalue()


def to_latex(comparison: Comparison) -> str:
    """A tabular for booktabs; a rule between comparisons. A dense network stands once, above its comparisons."""
    lines = [r"% needs \usepackage{booktabs}", r"\begin{tabular}{lrrrrrr}", r"\toprule"]
    head = ["arm", "seeds", "sparsity", r"accuracy (\%)", f"vs {comparison.reference or NONE}", "$p$ (Holm)", "SynOps"]
    ours = ("$p$ (Holm)", r"accuracy (\%)")
    lines.append(" & ".join(text if text in ours else _tex(text) for text in head) + r" \\")
    shown: set[tuple[str, str]] = set()
    for block in comparison.blocks:
        title = rf"\multicolumn{{7}}{{l}}{{{_tex(block.title)}}} \\"
        dense = [row for row in block.rows if row.target is None]
        if dense and (block.dataset, block.model) not in shown:
            shown.add((block.dataset, block.model))
            lines += [r"\midrule", *map(_tex_row, dense)]
        rows = [row for row in block.rows if row.target is not None]
        lines += [r"\midrule", title, *map(_tex_row, rows)] if rows else []
    if any(row.equal_budget is False for row in comparison.rows):
        said = f"epochs, batch, T or data are not those of {comparison.reference}"
        lines += [r"\midrule", rf"\multicolumn{{7}}{{l}}{{$^\dagger$ {_tex(said)}}} \\"]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def rows_to_latex(title: str, rows: Sequence[Sequence[str]]) -> str:
    """Any table as a tabular for booktabs, its title as a comment above it."""
    first, *others = [" & ".join(map(_tex, row)) + r" \\" for row in rows]
    lines = [f"% {' '.join(title.split())}", rf"\begin{{tabular}}{{l{'r' * (len(rows[0]) - 1)}}}", r"\toprule"]
    return "\n".join([*lines, first, r"\midrule", *others, r"\bottomrule", r"\end{tabular}", ""])


def _tex_row(row: Arm) -> str:
    """Accuracy and difference with as many digits as their intervals give sense to, sparsity as far as it differs."""
    versus = row.versus.difference if row.versus is not None else None
    chosen = [
        row.label,
        str(len(row.seeds)),
        f"{row.values['sparsity'].mean:.4f}".rstrip("0").rstrip("."),
        _sensible(row.values["accuracy"]),
        difference(row) if row.versus is None or row.versus.alike or versus is None else _sensible(versus, sign=True),
        p_value(row.versus.holm_p if row.versus else None),
        short(row.values["synops"].mean),
    ]
    first, *others = map(_tex, chosen)
    return " & ".join([first + (r"$^\dagger$" if row.equal_budget is False else ""), *others]) + r" \\"


def _sensible(summary: Summary, sign: bool = False) -> str:
    """A mean in percent with two decimals, or with one if its interval is wider than a point."""
    digits = 1 if summary.half is not None and 100 * summary.half >= 1 else 2
    mean = f"{100 * summary.mean:{'+' if sign else ''}.{digits}f}"
    return mean + (f" ± {100 * summary.half:.{digits}f}" if summary.half else "")


_TEX = {"\\": r"\textbackslash ", "&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "±": r"$\pm$", "<": "$<$"}
_TEX |= {"{": r"\{", "}": r"\}", "$": r"\$", "^": r"\^{}", "~": r"\~{}", ">": "$>$"}


def _cell(name: str) -> str:
    """A name as a cell of a CSV file: spreadsheets run what begins like a formula, so that it gets an apostrophe."""
    return f"'{name}" if name.startswith(("=", "+", "-", "@", "\t", "\r")) else name


def _tex(text: str) -> str:
    spelled = "".join(_TEX.get(character, character) for character in text)
    return "$-$" + spelled[1:] if spelled.startswith("-") and len(spelled) > 1 else spelled
