"""An analysis in words and figures: the lines that `spikeprune analyze` prints, and analysis.html.

Numbers are those of one run, or spreads over seeds (`seeds.over_seeds`), told as mean ± standard deviation.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from spikeprune.lab.page.charts import Series, legend, plot, styles
from spikeprune.lab.page.kit import Section, render
from spikeprune.lab.page.words import sentence
from spikeprune.lab.study.seeds import QUANTITIES, at
from spikeprune.lab.study.tables import p_value
from spikeprune.record.analysis import (
    AnalysisRecord,
    ImportanceOfDifference,
    Measured,
    Mechanism,
    PooledArm,
    Spread,
    UpdateSurvival,
)

NONE = "not applicable"


def lines(found: AnalysisRecord) -> list[str]:
    """A line each for survival, feature cosine, importance, and the gap of train and validation loss."""
    said = _own_lines(found)
    for name, part in _parts(found)[1:]:
        said += [f"{about}, {name}: {tell(part)}" for about, tell in _TOLD.items()]
        said.append(f"importance of what only one kept: {_between(part.importance_of_difference)}")
    return said


def _own_lines(found: AnalysisRecord) -> list[str]:
    """The sentences about the run itself, or about the first arm if several runs are analysed."""
    said = [f"{name}: {tell(_parts(found)[0][1])}" for name, tell in _TOLD.items()]
    if found.seeds is not None:
        said.append(f"seeds: {_listed(found.seeds.seeds)}; mean ± standard deviation")
    return said


def _parts(found: AnalysisRecord) -> list[tuple[str, Mechanism]]:
    """Name and numbers of this run (or arm, with several seeds), then of each run or arm that it is compared with."""
    if found.seeds is None:
        names = [f"{other.method} seed {other.seed}" for other in found.against]
        several = {name for name in names if names.count(name) > 1}
        told = (
            f"{name}, {other.run}" if name in several else name
            for name, other in zip(names, found.against, strict=True)
        )
        return [("this run", found), *zip(told, found.against, strict=True)]
    return [(f"{arm.arm} (n = {len(arm.seeds)})", arm) for arm in _arms(found.seeds)]


def _arms(pooled: PooledArm) -> tuple[PooledArm, ...]:
    """The first arm and those that it is set against."""
    return (pooled, *(pooled.against or ()))


def _survival(part: Mechanism) -> str:
    s = part.survival
    if s is None or not _mean(s.regrown):
        return NONE
    return (
        f"{_told(s.regrown, ',.0f')} regrown, {_told(s.survived_share, '.1%')} outlived the next cut, "
        f"{_told(s.to_end, '.1%')} are alive at the end; {_told(s.rescued, ',.0f')} rescued from a cut"
    )


def _cosine(part: Mechanism) -> str:
    c = part.consistency
    if c.mean_cosine is None:
        return NONE
    centred = _told(c.mean_cosine_centred, ".4f")
    return f"{_told(c.mean_cosine, '.4f')} train to test, mean over classes and layers; centred {centred}"


def _importance(part: Mechanism) -> str:
    i = part.importance
    if i is None or i.regrown is None or i.others is None:
        return NONE
    return (
        f"{_told(i.regrown, '.4f')} of {_told(i.regrown_count, ',.0f')} regrown weights alive at the end, "
        f"{_told(i.others, '.4f')} of the {_told(i.others_count, ',.0f')} others (|w| over the layer's largest)"
    )


def _gap(part: Mechanism) -> str:
    o = part.overfitting
    if o.final_gap is None:
        return NONE
    recovery = _told(o.recovery_gap, "+.4f")
    end = _told(o.final_gap, "+.4f")
    return f"{end} at the end (validation less train), {recovery} mean after the last mask update"


_TOLD = {"survival": _survival, "feature cosine": _cosine, "importance": _importance, "loss gap": _gap}


def _between(i: ImportanceOfDifference | None) -> str:
    if i is None or i.only_this is None or i.only_other is None:
        return NONE
    symbol = "gamma" if i.of == "gamma" else "w"
    return (
        f"{_told(i.only_this, '.4f')} of {_told(i.only_this_count, ',.0f')} kept only here, "
        f"{_told(i.only_other, '.4f')} of {_told(i.only_other_count, ',.0f')} kept only there "
        f"(|{symbol}| over the layer's largest)"
    )


def _told(value: Measured | None, form: str) -> str:
    if value is None:
        return NONE
    if isinstance(value, Spread):
        fine = ".2g" if form.endswith("g") else form.removeprefix("+")
        spread = "" if value.sd is None else f" ± {value.sd:{fine}}"
        return f"{value.mean:{form}}{spread}"
    return f"{value:{form}}"


def _mean(value: Measured | None) -> float | None:
    return value.mean if isinstance(value, Spread) else value


def _spread(value: Measured | None) -> float:
    return (value.sd or 0.0) if isinstance(value, Spread) else 0.0


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


def page(found: AnalysisRecord) -> str:
    """analysis.html: tables and figures with captions, this run or arm beside those it was analysed against."""
    parts, pooled = _parts(found), found.seeds
    sections = [_survival_section(parts), _consistency_section(parts), _importance_section(parts)]
    sections += [_overfitting_section(parts), _criticality_section(parts)]
    if pooled is not None and pooled.against:
        sections.insert(0, _difference_section(pooled))
    notes = [
        f"Features: {found.features}; the first {found.images:,} images of each split, not augmented.",
        found.criticality.limits,
        *(sentence(f"{name.replace('_', ' ')}: {meaning}") for name, meaning in found.criticality.states.items()),
    ]
    sections = [replace(section, tables=tuple(map(_told_cells, section.tables))) for section in sections]
    if pooled is None:
        return render(_title(parts[0][1], found.run), _measured(lines(found)), sections, notes, over=found.run)
    own = _measured(_own_lines(found))
    title, over = _title(parts[0][1], pooled.arm), f"{pooled.arm}, {len(pooled.seeds)} seeds"
    notes.insert(0, f"Mean ± standard deviation over n runs that differ in the seed alone: {', '.join(pooled.runs)}.")
    return render(title, own, sections, notes, over=over)


def _title(part: Mechanism, run: str) -> str:
    """The title of the page: how many regrown weights lived, or the name of the run if nothing was regrown."""
    if part.survival is None or not _mean(part.survival.regrown):
        return f"Analysis of {run}: nothing was regrown"
    share = _told(part.survival.survived_share, ".1%")
    end = _told(part.survival.to_end, ".1%")
    return f"{share} of the regrown weights outlived the next cut, {end} are alive at the end"


def _measured(told: Sequence[str]) -> list[str]:
    """The lines that hold a result, as sentences. The terminal also prints those where nothing applies."""
    return [sentence(line) for line in told if not line.endswith(NONE)]


def _told_cells(table: Sequence[Sequence[str]]) -> list[Sequence[str]]:
    """A table without the rows and columns in which nothing applies."""
    rows = [row for row in table if any(cell not in (NONE, "-") for cell in row[2:]) or len(row) < 3]
    shown = [any(row[n] != NONE for row in rows[1:]) for n in range(len(rows[0]))]
    return [[cell for cell, kept in zip(row, shown, strict=True) if kept] for row in rows]


def _difference_section(pooled: PooledArm) -> Section:
    """Each quantity of all arms in one table, and in another what this arm has more than each of the others."""
    arms = _arms(pooled)
    values = [["quantity", *(f"{arm.arm} (n = {len(arm.seeds)})" for arm in arms)]]
    apart = [["quantity", *(text for arm in arms[1:] for text in (f"less {arm.arm}", "p (t)"))]]
    for name, path in QUANTITIES.items():
        values.append([name, *(_told(at(arm, path), ".4g") for arm in arms)])
        apart.append([name])
        for arm in arms[1:]:
            d = None if arm.difference is None else arm.difference[name]
            half = "" if d is None or d.half is None else f" ± {d.half:.3g}"
            apart[-1] += [NONE if d is None else f"{d.mean:+.3g}{half}", p_value(None if d is None else d.p)]
    say = (
        f"Of each arm mean ± standard deviation. Below that {pooled.arm} less each of the others: paired by seed, mean "
        "± half of the 95 % t interval, and paired t-test, not corrected for the number of tests."
    )
    return Section("Side by side", (say,), (values, apart))


def _styles(parts: list[tuple[str, Mechanism]]) -> dict[str, int]:
    """The colour of each part, the same in all figures of the page, whichever parts a figure shows."""
    return styles([name for name, _ in parts])


def _figure(
    parts: list[tuple[str, Mechanism]], points: Any, axes: tuple[str, str], caption: str, style: dict[str, int]
) -> tuple[str, str]:
    """An SVG of a series for each part, and its caption, which tells n and what the bars are."""
    series = []
    for name, part in parts:
        mine = [(float(x), y) for x, y in points(part) if y is not None]
        at = tuple((x, float(_mean(y) or 0.0)) for x, y in mine)
        series.append(Series(name, at, tuple(_spread(y) for _, y in mine), style=style[name]))
    counts = [
        f"n = {len(part.seeds)} ({name.partition(' (n')[0]})" for name, part in parts if isinstance(part, PooledArm)
    ]
    bars = f" Mean over seeds, {', '.join(counts)}; bars: standard deviation." if counts else " One run each, n = 1."
    return plot(series, *axes), caption + bars


def _ranked(parts: list[tuple[str, Mechanism]], value: Any, what: str, form: str, limit: str = "") -> str:
    """The conclusion of a panel in a sentence: the number of one run, or the highest and the lowest number of several.

    Args:
        value: part -> its number, None where it has none.
        limit: a sentence on how to judge the number.
    """
    found = [(name, number) for name, part in parts if (number := value(part)) is not None]
    if not found:
        return ""
    if len(found) == 1:
        said = f"{what} is {_told(found[0][1], form)} in {found[0][0]}."
    else:
        found.sort(key=lambda entry: _mean(entry[1]) or 0.0)
        (low, least), (high, most) = found[0], found[-1]
        said = f"{what} is highest in {high} ({_told(most, form)}) and lowest in {low} ({_told(least, form)})."
        apart = (_mean(most) or 0.0) - (_mean(least) or 0.0)
        if any(isinstance(number, Spread) for _, number in found) and apart < _spread(most) + _spread(least):
            said += " The difference is within the standard deviations over seeds."
    return f"{said} {limit}".rstrip()


def _updates(part: Mechanism) -> tuple[UpdateSurvival, ...]:
    return (part.survival.events or ()) if part.survival else ()


def _survival_section(parts: list[tuple[str, Mechanism]]) -> Section:
    grown = [(name, part) for name, part in parts if part.survival and _mean(part.survival.regrown)]
    heads = ["run", "mask update", "step", "regrown", "rescued", "of what was newly cut", "outlived the next cut"]
    rows = [
        [
            name,
            str(n),
            str(e.step),
            _told(e.regrown, ",.0f"),
            _told(e.rescued, ",.0f"),
            _told(e.rescued_share, ".1%"),
            _told(e.survived_share, ".1%"),
        ]
        for name, part in grown
        for n, e in enumerate(_updates(part), 1)
    ]

    def points(part: Mechanism) -> Any:
        return [(n, e.survived_share) for n, e in enumerate(_updates(part), 1)]

    caption = "Share of the weights regrown by a mask update that the next magnitude cut keeps."
    figure = _figure(grown, points, ("mask update", "share that outlived the next cut"), caption, _styles(parts))
    names = [name for name, _ in grown]
    title = "Potential structures: what growth rescued, and what of it survived"
    if not rows:
        return Section(title, (sentence(f"{NONE}: nothing was regrown"),))
    return Section(title, tables=([heads, *rows],), figures=(figure,), legend=legend(names, _styles(parts)),
        conclusion=_ranked(
            grown, lambda part: part.survival.survived_share, "The share of regrown weights that outlived the next cut",
            ".1%",
        ),
    )  # fmt: skip


def _consistency_section(parts: list[tuple[str, Mechanism]]) -> Section:
    heads = ["run", "neuron layer", "variance, train", "variance, test", "cosine", "cosine, centred"]
    keys = ("mean_variance_train", "mean_variance_test", "mean_cosine", "mean_cosine_centred")
    rows = [
        [name, layer.neuron, *(_told(getattr(layer, k), ".4g") for k in keys)]
        for name, part in parts
        for layer in (part.consistency.layers or ())
    ]

    def points(part: Mechanism) -> Any:
        return [(n, layer.mean_cosine_centred) for n, layer in enumerate((part.consistency.layers or ()), 1)]

    say = "Mean over classes: variance within a class, and cosine of its mean feature on training and on test images."
    caption = (
        "Cosine of a class's mean feature on training and on test images, the mean of all classes taken off, by layer."
    )
    figure = _figure(
        parts, points, ("neuron layer, in the order of execution", "centred cosine"), caption, _styles(parts)
    )
    said = _ranked(parts, lambda part: part.consistency.mean_cosine_centred, "The mean centred cosine", ".4f",
                   "At 1 a class looks alike in training and test.")  # fmt: skip
    names = [name for name, _ in parts]
    return Section("Feature consistency", (say,), ([heads, *rows],), (figure,), legend(names, _styles(parts)), said)


def _importance_section(parts: list[tuple[str, Mechanism]]) -> Section:
    said = [f"{name}: {_importance(part)}" for name, part in parts]
    said += [f"against {name}: {_between(part.importance_of_difference)}" for name, part in parts[1:]]
    conclusion = _ranked(
        parts, lambda part: part.importance.regrown if part.importance else None,
        "The mean size of regrown weights at the end", ".4f", "It is a share of the layer's largest weight.",
    )  # fmt: skip
    return Section("Importance after recovery", tuple(map(sentence, said)), conclusion=conclusion)


def _overfitting_section(parts: list[tuple[str, Mechanism]]) -> Section:
    def points(part: Mechanism) -> Any:
        return [(epoch.epoch, epoch.gap) for epoch in (part.overfitting.epochs or ())]

    caption = (
        "Mean cross-entropy per image on validation less that on training images, both in eval mode, after each epoch."
    )
    if all(y is None for _, part in parts for _, y in points(part)):
        return Section("Overfitting in recovery", (sentence(f"{NONE}: the runs held out no images (data.validation)"),))
    figure = _figure(parts, points, ("epoch", "validation less train loss"), caption, _styles(parts))
    said = _ranked(parts, lambda part: part.overfitting.final_gap, "The loss gap at the end", "+.4f",
                   "Above 0 the network fits training images better than those held out.")  # fmt: skip
    names = [name for name, _ in parts]
    return Section("Overfitting in recovery", figures=(figure,), legend=legend(names, _styles(parts)), conclusion=said)


def _criticality_section(parts: list[tuple[str, Mechanism]]) -> Section:
    heads = [
        "run",
        "network",
        "branching, pooled",
        "within images",
        "ratio",
        "avalanches",
        "mean size",
        "size exponent",
    ]
    rows, layers = [], []
    for name, part in parts:
        for state in part.criticality.states:
            c, called = getattr(part.criticality, state), state.replace("_", " ")
            if c is None:
                rows.append([name, called, *[NONE] * 6])
                continue
            b, a = c.branching, c.avalanches
            values = (b.pooled, b.within, b.ratio, a.count, a.mean_size, a.size_exponent)
            rows.append([name, called, *(_told(value, ".4g") for value in values)])
            for layer in c.layers or ():
                cells = (layer.entropy, layer.criticality, layer.correlation)
                layers.append([name, called, layer.neuron, *(_told(value, ".4g") for value in cells)])
    more = ["run", "network", "neuron layer", "entropy, bits", "criticality", "correlation over channels"]
    said = _ranked(parts, _branching, "The branching ratio of the final network", ".4g",
                   "A ratio of 1 is the critical point; the limits of the estimate stand at the end.")  # fmt: skip
    return Section("Is the network critical?", tables=([heads, *rows], [more, *layers]), conclusion=said)


def _branching(part: Mechanism) -> Measured | None:
    found = part.criticality.after_regeneration
    return None if found is None else found.branching.pooled
