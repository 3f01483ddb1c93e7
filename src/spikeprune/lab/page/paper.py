"""A comparison as a figure for a paper: accuracy over sparsity and over SynOps, with a legend."""

import io
from typing import Any

from spikeprune.core.errors import InvalidValue, MissingDependency
from spikeprune.lab.page.charts import COLOURS, MARKS, styles
from spikeprune.lab.study.compare import Arm, Comparison
from spikeprune.record.text import tick

_INCHES = (6.75, 2.5)  # the text width of a two-column paper, both panels
_LEGEND = 110  # characters that a line of the legend holds
_KINDS = (".svg", ".pdf", ".png")
_SHAPES = "os^Dv"


def paper_figure(comparison: Comparison, kind: str) -> bytes:
    """The figure as a file.

    Args:
        kind: ".svg", ".pdf" or ".png"; text stays text in the first two.
    Raises: InvalidValue for another kind or several networks; MissingDependency without matplotlib.
    """
    if kind not in _KINDS:
        raise InvalidValue(f"--figure takes a file that ends in .svg, .pdf or .png, got {kind or 'no ending'!r}")
    networks = list(dict.fromkeys((row.dataset, row.model) for row in comparison.rows))
    if len(networks) > 1:
        named = "; ".join(f"{model} on {dataset}" for dataset, model in networks[:3])
        raise InvalidValue(f"--figure shows one network on one dataset, got {named}; compare the runs of one of them")
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingDependency("--figure needs matplotlib; try: pip install 'spikeprune[figure]'") from error
    plain: dict[Any, Any] = {"font.size": 8, "svg.fonttype": "none", "svg.hashsalt": "spikeprune", "pdf.fonttype": 42}
    with rc_context(plain):
        figure = Figure(figsize=_INCHES, layout="constrained")
        _draw(figure, comparison)
        file = io.BytesIO()
        figure.savefig(file, format=kind[1:], dpi=300, metadata=_UNDATED[kind])
        return file.getvalue()


# The same comparison gives the same file.
_UNDATED: dict[str, dict[str, Any]] = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}, ".png": {}}


def _draw(figure: Any, comparison: Comparison) -> None:
    pruned = [row for row in comparison.rows if row.target is not None]
    dense = [row for row in comparison.rows if row.target is None]
    style = styles([row.label for row in comparison.rows])
    left, right = figure.subplots(1, 2, sharey=True)
    for arm in dict.fromkeys(row.label for row in pruned or dense):
        rows = [row for row in pruned or dense if row.label == arm]
        look = {"color": COLOURS[style[arm] % MARKS], "marker": _SHAPES[style[arm] // MARKS % len(_SHAPES)]}
        for axes, value in ((left, _sparsity), (right, _synops)):
            mine = sorted(rows, key=value)
            half = [100 * (row.values["accuracy"].half or 0.0) if len(row.seeds) > 2 else 0.0 for row in mine]
            at, means = [value(row) for row in mine], [100 * row.values["accuracy"].mean for row in mine]
            axes.errorbar(at, means, half, label=arm, ms=3, lw=1, capsize=1.5, **look)
            dots = [(value(row), 100 * accuracy) for row in mine for accuracy in row.accuracies]
            axes.plot(*zip(*dots, strict=True), ".", ms=2, alpha=0.5, color=look["color"])
    for row in dense if pruned else ():
        for axes in (left, right):
            axes.axhline(100 * row.values["accuracy"].mean, color="0.45", lw=0.8, ls="--")
        right.annotate("dense", (0.98, 100 * row.values["accuracy"].mean), xycoords=("axes fraction", "data"),
                       ha="right", va="top", color="0.35", fontsize=7)  # fmt: skip
    left.set(xlabel="sparsity (%)", ylabel="accuracy (%)")
    right.set(xlabel="SynOps an image", xscale="log")
    for axis in (right.xaxis.set_major_formatter, right.xaxis.set_minor_formatter):
        axis(lambda value, _: tick(value))
    right.tick_params(axis="x", which="minor", labelsize=6)
    low, high = left.get_ylim()
    left.set_ylim(max(0.0, low), min(100.0, high))
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    handles, named = left.get_legend_handles_labels()
    columns = max(1, min(4, _LEGEND // (max(map(len, named), default=0) + 8)))  # a handle is as wide as 8 characters
    figure.legend(handles, named, loc="outside upper center", ncols=columns, frameon=False)


def _sparsity(row: Arm) -> float:
    return 100 * row.values["sparsity"].mean


def _synops(row: Arm) -> float:
    return row.values["synops"].mean
