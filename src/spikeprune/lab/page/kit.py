"""One design for all pages: a page is a lead, sections of sentences, tables and figures, and notes on how to read it.

The report has a template of its own for its figures; the style sheet, the colours and the words are the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from spikeprune.lab.page.charts import COLOURS
from spikeprune.lab.page.contents import with_contents
from spikeprune.lab.page.words import bound


@final
@dataclass(frozen=True)
class Section:
    """A part of a page. A table is rows of cells, the first of them its heads; a figure is an SVG and its caption."""

    title: str
    say: tuple[str, ...] = ()
    tables: tuple[Sequence[Sequence[str]], ...] = ()
    figures: tuple[tuple[str, str], ...] = ()
    legend: str = ""
    conclusion: str = ""


def render(
    title: str,
    lead: Sequence[str],
    sections: Sequence[Section],
    notes: Sequence[str],
    *,
    over: str = "",
    made: Sequence[tuple[str, str]] = (),
    refresh: int | None = None,
) -> str:
    """The page as text. The texts of cells and sentences are escaped.

    Args:
        over: a line above the title that says what the page is of.
        made: where the numbers come from: (what, which), such as ("command", "spikeprune compare runs").
        refresh: seconds after which a browser loads the page again.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("spikeprune.lab.page")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters["bound"] = bound
    template = environment.get_template("page.html.j2")
    return with_contents(
        template.render(
            title=title, lead=lead, sections=sections, notes=notes, colours=COLOURS, over=over, made=made,
            refresh=refresh,
        ) + "\n"
    )  # fmt: skip
