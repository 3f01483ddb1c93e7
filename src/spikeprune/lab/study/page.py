"""One self-contained HTML page from tables and figures; the comparison's page."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from spikeprune.lab.study import claims, tables
from spikeprune.lab.study.compare import Arm, Comparison
from spikeprune.lab.study.plots import COLOURS, Series, front, legend, plot


@final
@dataclass(frozen=True)
class Section:
    """A part of a page. A table is rows of cells, the first of them its heads; a figure is an SVG and its caption."""

    title: str
    say: tuple[str, ...] = ()
    tables: tuple[Sequence[Sequence[str]], ...] = ()
    figures: tuple[tuple[str, str], ...] = ()
    legend: str = ""


def render(title: str, lead: Sequence[str], sections: Sequence[Section], notes: Sequence[str]) -> str:
    """The page as text. What stands in cells and sentences is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("spikeprune.lab.study")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    template = environment.get_template("page.html.j2")
    return template.render(title=title, lead=lead, sections=sections, notes=notes, colours=COLOURS) + "\n"


def comparison_page(comparison: Comparison) -> str:
    """Tables of results and costs, Pareto plots, and the paper's factors with numerator and denominator."""
    sections = [
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
    for dataset, model in dict.fromkeys((row.dataset, row.model) for row in comparison.rows):
        rows = [row for row in comparison.rows if (row.dataset, row.model) == (dataset, model)]
        sections.append(_pareto(f"{dataset}, {model}: accuracy against what it takes", rows))
    sections.append(Section("The paper's factors of cost", tuple(claims.explanation())))
    lead = [f"{sum(len(row.seeds) for row in comparison.rows)} runs in {len(comparison.rows)} rows."]
    return render("Comparison", lead, sections, tables.notes(comparison))


def _pareto(title: str, rows: Sequence[Arm]) -> Section:
    """The dense rows are told in the captions: they lie so far off that all others would fall together."""
    dense = [f"{row.label} {tables.percent(row.values['accuracy'])} %" for row in rows if row.target is None]
    rows = [row for row in rows if row.target is not None] or rows
    arms = list(dict.fromkeys(row.label for row in rows))
    axes = (
        ("1 - sparsity", lambda row: 1 - row.values["sparsity"].mean),
        ("synops", lambda row: row.values["synops"].mean),
        ("train_macs_effective", lambda row: row.values["train_macs_effective"].mean),
    )
    names = ("share of the prunable weights alive", "SynOps an image", "MACs of training, with credit for zeros")
    figures = []
    for (_, value), name in zip(axes, names, strict=True):
        series = []
        for arm in arms:
            mine = sorted((row for row in rows if row.label == arm), key=value)
            points = tuple((value(row), 100 * row.values["accuracy"].mean) for row in mine)
            spread = tuple(100 * (row.values["accuracy"].half or 0.0) for row in mine)
            series.append(Series(arm, points, spread))
        best = front([point for one in series for point in one.points])
        caption = f"Accuracy over {name}; mean and 95 % interval over seeds. Dotted: no row is better at less."
        caption += f" Not shown: {', '.join(dense)}." if dense and len(arms) > len(dense) else ""
        figures.append((plot(series, name, "accuracy, %", log=True, marked=best), caption))
    return Section(title, figures=tuple(figures), legend=legend(arms))
