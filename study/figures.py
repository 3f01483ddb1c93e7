"""Pictures of the deep study and of cost: accuracy over sparsity and over seconds, from `spikeprune compare`."""

from collections.abc import Iterable, Mapping, Sequence

from spikeprune.lab.page.charts import Level, Series, picture, plot
from spikeprune.lab.study.compare import Arm, Comparison

WEIGHTS = ("deep", "deep_more")
CHANNELS = ("deep_channels", "deep_channels_more")
COST = ("deep_cost",)
SMALL_COST = ("cost",)


def deep(found: Mapping[str, Comparison]) -> dict[str, str]:
    """Name -> SVG, of those pictures that there are results for."""
    pictures = {
        "deep-weights": over_sparsity(_rows(found, WEIGHTS)),
        "deep-channels": over_sparsity(_rows(found, CHANNELS)),
        "deep-cost": over_seconds(_rows(found, COST)),
        "cost": over_seconds(_rows(found, SMALL_COST)),
    }
    return {name: svg for name, svg in pictures.items() if svg}


def section(found: Mapping[str, Comparison]) -> list[str]:
    """The pictures in docs/study.md."""
    captions = {
        "deep-weights": "Accuracy over the share of weights cut, by network; mean, 95 % interval; dashed: dense.",
        "deep-channels": "Accuracy over the share of channels cut, by network; mean, 95 % interval; dashed: dense.",
        "deep-cost": "Deep networks: accuracy over CPU seconds, until the masks are known and of the whole training.",
        "cost": "Small network, 95 %: accuracy over CPU seconds, until the masks are known and of the whole training.",
    }
    lines = [line for name in deep(found) for line in (f"![{captions[name]}](images/study-{name}.svg)", "")]
    return ["## In pictures: the deep networks, and cost", "", *lines] if lines else []


def over_sparsity(rows: Sequence[Arm]) -> str:
    """A panel a network: accuracy over target sparsity, a line an arm, the dense network as a level, or ""."""
    pruned = [row for row in rows if row.target is not None]
    if not pruned:
        return ""
    names = list(dict.fromkeys(row.label for row in pruned))
    ticks = {row.target: f"{100 * row.target:g} %" for row in pruned if row.target is not None}
    panels = [
        plot(
            [_series(name, [row for row in pruned if (row.label, row.model) == (name, model)]) for name in names],
            f"share cut, {(model or '').rpartition(':')[2]}",
            "accuracy, %",
            levels=_dense(row for row in rows if row.target is None and row.model == model),
            within=(0, 100),
            at=dict(sorted(ticks.items())),
        )
        for model in dict.fromkeys(row.model for row in pruned)
    ]
    return picture(panels, names)


def _dense(rows: Iterable[Arm]) -> list[Level]:
    """One level of the dense networks: the mean of the files' means, whose trainings may be of other processors."""
    means = [100 * row.values["accuracy"].mean for row in rows]
    return [Level(f"dense {sum(means) / len(means):.1f} %", sum(means) / len(means))] if means else []


def _series(name: str, rows: Sequence[Arm]) -> Series:
    rows = sorted(rows, key=lambda row: row.target or 0.0)
    points = tuple((row.target or 0.0, 100 * row.values["accuracy"].mean) for row in rows)
    return Series(name, points, tuple(100 * (row.values["accuracy"].half or 0.0) for row in rows))


def over_seconds(rows: Sequence[Arm]) -> str:
    """A row a network: accuracy over the seconds of the search for the masks, and over those of the whole training."""
    pruned = [row for row in rows if row.target is not None]
    if not pruned:
        return ""
    names = list(dict.fromkeys(row.label for row in pruned))
    models = list(dict.fromkeys(row.model for row in pruned))
    panels = []
    for model in models:
        which = f", {(model or '').rpartition(':')[2]}" if len(models) > 1 else ""
        for quantity, said in (("search_seconds", "seconds until the masks are known"), ("seconds", "seconds in all")):
            series = []
            for name in names:
                own = [row for row in pruned if (row.label, row.model) == (name, model)]
                points = tuple((row.values[quantity].mean, 100 * row.values["accuracy"].mean) for row in own)
                spread = tuple(100 * (row.values["accuracy"].half or 0.0) for row in own)
                series.append(Series(name, points, spread, joined=False))
            panels.append(plot(series, said + which, "accuracy, %", log=True))
    return picture(panels, names)


def _rows(found: Mapping[str, Comparison], names: Iterable[str]) -> list[Arm]:
    return [row for name in names if name in found for row in found[name].rows]
