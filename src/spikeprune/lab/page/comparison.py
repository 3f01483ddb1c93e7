"""The page of a comparison: what it comes to, accuracy over sparsity and over operations, then the tables."""

from collections.abc import Callable, Mapping, Sequence

from spikeprune.lab.page.charts import Level, Series, legend, plot, styles
from spikeprune.lab.page.kit import Section, render
from spikeprune.lab.study import claims, reviewer, tables
from spikeprune.lab.study.collected import BESIDE
from spikeprune.lab.study.compare import Arm, Comparison
from spikeprune.lab.study.conclude import conclusions

Titled = tuple[str, list[list[str]]]  # a title, and a table with its heads

_FEW_TICKS = 7
_LEVELS = 2  # more dense networks than that would draw a fence


def comparison_page(
    comparison: Comparison,
    *,
    made: Sequence[tuple[str, str]] = (),
    factors: bool = False,
    extra: Sequence[Section] = (),
) -> str:
    """The page as text.

    Args:
        made: what stands in the provenance beside the runs themselves, such as the command and the date.
        factors: whether the paper's factors of cost are shown.
        extra: further sections, above the tables.
    """
    title, *lead = conclusions(comparison)
    networks = list(dict.fromkeys((row.dataset, row.model) for row in comparison.rows))
    style = styles([row.label for row in comparison.rows])
    sections = [_plots(comparison, dataset, model, style) for dataset, model in networks]
    sections += extra
    sections += [
        Section(
            block.title,
            (tables.family(comparison, block),),
            (
                tables.main_table(comparison, block.rows),
                [tables.COST_HEADS, *map(tables.cost_cells, block.rows)],
            ),
        )
        for block in comparison.blocks
    ]
    if factors:
        sections.append(Section("The paper's factors of cost", tuple(claims.explanation())))
    runs = len({run.removesuffix(BESIDE) for row in comparison.rows for run in row.runs})
    over = f"Comparison of {runs} run{'s' * (runs != 1)}: " + "; ".join(
        f"{model} on {dataset}" for dataset, model in networks
    )
    return render(title, lead, sections, tables.notes(comparison), over=over, made=[*_made(comparison), *made])


def reviewer_sections(asked: Sequence[Titled], by_class: Sequence[Titled] = ()) -> list[Section]:
    """The tables that reviewers ask for, with how to read them above the first one."""
    explained = tuple(reviewer.explanation())
    return [
        *(
            Section(f"{title}: what reviewers ask for", explained if n == 0 else (), (rows,))
            for n, (title, rows) in enumerate(asked)
        ),
        *(Section(title, (), (rows,)) for title, rows in by_class),
    ]


def _made(comparison: Comparison) -> list[tuple[str, str]]:
    """Data, seeds and machines of the runs."""
    rows = comparison.rows
    images = {f"{row.dataset}: " + ", ".join(f"{n:,} {split}" for split, n in row.images.items() if n) for row in rows}
    seeds = sorted({seed for row in rows for seed in row.seeds})
    machines = sorted({machine for row in rows for machine in row.machines})
    return [
        ("images", "; ".join(sorted(images))),
        ("seeds", ", ".join(map(str, seeds))),
        *(("made on", machine) for machine in machines),
    ]


def _plots(comparison: Comparison, dataset: str, model: str, style: Mapping[str, int]) -> Section:
    """Two figures with one legend: a line is an arm, a faint dot a seed, the dashed line the dense network."""
    rows = [row for row in comparison.rows if (row.dataset, row.model) == (dataset, model)]
    dense = [row for row in rows if row.target is None]
    pruned = [row for row in rows if row.target is not None]
    arms = list(dict.fromkeys(row.label for row in pruned or dense))
    levels = [Level(f"{row.label} {100 * _mean(row):.2f} %", 100 * _mean(row)) for row in dense[:_LEVELS] if pruned]

    def series(value: Callable[[Arm], float]) -> list[Series]:
        found: list[Series] = []
        for arm in arms:
            mine = sorted((row for row in pruned or dense if row.label == arm), key=value)
            points = tuple((value(row), 100 * _mean(row)) for row in mine)
            spread = tuple(100 * (row.values["accuracy"].half or 0.0) for row in mine)
            # Two seeds have an interval of twelve times their distance: there the dots say more than a bar.
            spread = spread if all(len(row.seeds) > 2 for row in mine) else ()
            seeds = tuple((value(row), 100 * accuracy) for row in mine for accuracy in row.accuracies)
            found.append(Series(arm, points, spread, seeds=seeds if len(mine[0].seeds) > 1 else (), style=style[arm]))
        return found

    targets = sorted({row.target for row in pruned if row.target is not None})
    at = {target: f"{100 * target:.4g} %" for target in targets} if len(targets) <= _FEW_TICKS else None
    by_sparsity = plot(
        series(lambda row: row.target or 0.0), "sparsity", "accuracy, %", levels=levels, within=(0.0, 100.0), at=at
    )
    by_synops = plot(
        series(lambda row: row.values["synops"].mean), "SynOps an image", "accuracy, %",
        log=True, levels=levels, within=(0.0, 100.0),
    )  # fmt: skip
    bars = " Bars: 95 % interval." if any(len(row.seeds) > 2 for row in pruned) else ""
    level = " The dashed line is the dense network." if levels else ""
    line = "line" if len(targets) > 1 else "mark"
    seeds = ", and a faint dot is a seed" if any(len(row.seeds) > 1 for row in pruned or dense) else ""
    heads = f"A {line} is a method{seeds}.{level}{bars}"
    over_sparsity = ((by_sparsity, "Accuracy on the test split over sparsity."),) if len(targets) != 1 else ()
    figures = (*over_sparsity, (by_synops, _SYNOPS))  # over one sparsity all points would stand above each other
    return Section(f"{dataset}, {model}", (heads,), figures=figures, legend=legend(arms, style))


_SYNOPS = "Accuracy over synaptic operations an image (logarithmic): further left costs less, higher is better."


def _mean(row: Arm) -> float:
    return row.values["accuracy"].mean
