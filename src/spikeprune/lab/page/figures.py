"""Positions in the figures, in percent of their box. The template draws them.

Curves are SVG stretched to the box, everything else HTML at a percentage of it, so that a figure fills a phone as it
fills a desk and its text keeps its size. The page needs no plotting library and comes out alike on every machine.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import final

from spikeprune.lab.page import words
from spikeprune.lab.page.charts import round_numbers
from spikeprune.lab.page.read import ShownRun
from spikeprune.record.bench import CLOCKS, EngineTime, TimedThreads
from spikeprune.record.epoch import Epoch
from spikeprune.record.round import Round
from spikeprune.record.statistics import NetworkStatistics, NeuronStatistics


@final
@dataclass(frozen=True)
class Tick:
    at: float
    text: str


@final
@dataclass(frozen=True)
class Line:
    """A line in a box of 100 x 100, y downwards; `kind` is its class in the style sheet."""

    kind: str
    path: str


@final
@dataclass(frozen=True)
class Dot:
    kind: str
    x: float
    y: float
    text: str


@final
@dataclass(frozen=True)
class Panel:
    title: str
    tall: bool
    ticks: tuple[Tick, ...]
    curves: tuple[Line, ...]
    dots: tuple[Dot, ...] = ()
    marks: tuple[Dot, ...] = ()  # seen on hover only


@final
@dataclass(frozen=True)
class Timeline:
    """Panels over one time axis. `events` and the end of pruning, `recovery`, are percent of it."""

    panels: tuple[Panel, ...]
    ticks: tuple[Tick, ...]
    events: tuple[float, ...]
    recovery: float | None
    low: float


@final
@dataclass(frozen=True)
class Bar:
    """A row: its name, a word on it, and one filled share of the track for each kind."""

    name: str
    note: str
    parts: tuple[tuple[str, float], ...]
    cells: tuple[str, ...]


@final
@dataclass(frozen=True)
class Race:
    """The engines at one batch size and number of threads: a finding in words, and a bar for each engine."""

    title: str
    finding: str
    bars: tuple[Bar, ...]


@final
@dataclass(frozen=True)
class Column:
    """One mask update: the weights that it regrew, those that outlived the next cut, those that growth rescued."""

    number: int
    step: int
    regrown: float
    survived: float
    rescued: float
    text: str


@final
@dataclass(frozen=True)
class Box:
    """Quantiles of one network at one neuron layer, in percent of the axis: 0, 5, 25, 50, 75, 95 and 100 %."""

    kind: str
    low: float
    left: float
    right: float
    high: float
    median: float
    value: float


@final
@dataclass(frozen=True)
class Strip:
    """A row of small cells, one for each mask update; `shades` are in [0, 1]."""

    name: str
    note: str
    shades: tuple[tuple[float, str], ...]
    total: str


_HOVERED = 500  # more would make the page heavy


def most_in_cell(run: ShownRun) -> int:
    """The most that one mask update regrew in one layer: where the scale of the cells ends."""
    return max((n for r in run.rounds for n in regrown_by_layer(r).values()), default=0)


def timeline(run: ShownRun) -> Timeline:
    """Accuracy of both runs and the sparsity of the pruned one, over epochs."""
    lines = {kind: [e for e in run.epochs if e.phase == kind] for kind in ("dense", "pruned")}
    if run.record.squeeze is not None:  # the dense network is the one that was squeezed
        lines["dense"] = [e for e in run.epochs if e.phase == "pretrain"]
    last = max(e.epoch for e in run.epochs)
    per_epoch = max(e.step / e.epoch for e in run.epochs)
    ticks, low, high = _accuracy_axis(run, list(lines.values()), last)

    def x(epoch: float) -> float:
        return 100 * epoch / last

    def y(accuracy: float) -> float:
        return 100 - 100 * (accuracy - low) / (high - low)

    curves = [Line(kind, _line((x(e.epoch), y(run.accuracy(e))) for e in es)) for kind, es in lines.items() if es]
    best = run.record.best_epoch if run.validated else None
    chosen = [e for e in lines["pruned"] if e.epoch == best]
    dots = [Dot("pruned", x(e.epoch), min(100.0, y(run.accuracy(e))), f"epoch {e.epoch}, kept") for e in chosen]
    events = [event.step / per_epoch for event in run.rounds]
    marks = [
        Dot(kind, x(e.epoch), min(100.0, y(run.accuracy(e))), f"{kind}, epoch {e.epoch}: {run.accuracy(e):.2%}")
        for kind, es in lines.items()
        for e in es
    ]
    accuracy = Panel("accuracy", True, ticks, tuple(curves), tuple(dots), tuple(marks[:_HOVERED]))
    panels = [accuracy]
    if run.rounds:
        whole_axis = tuple(Tick(100 - 100 * s, f"{100 * s:.0f} %") for s in (0.0, 0.5, 1.0))
        stair = _line((x(at), 100 - 100 * s) for at, s in _stair(run, lines["pruned"], events, last))
        panels.append(Panel("sparsity", False, whole_axis, (Line("pruned", stair),)))
    return Timeline(
        tuple(panels),
        tuple(Tick(x(at), f"{at:g}") for at in round_numbers(0, last, 6, whole=True, least=2)),
        tuple(x(at) for at in events),
        x(events[-1]) if events else None,
        low,
    )


def layer_bars(run: ShownRun) -> list[Bar]:
    """The share of each layer's weights that is alive."""
    return [
        Bar(
            layer.name,
            layer_note(run, layer.name),
            (("pruned", 100 * layer.alive / layer.weights),),
            (
                words.whole(layer.alive),
                words.whole(layer.weights),
                words.percent(1 - layer.alive / layer.weights),
            ),
        )
        for layer in run.layers
    ]


def layer_note(run: ShownRun, name: str) -> str:
    """`first layer`, `classifier`, or nothing."""
    if run.layers and run.statistics and name == run.layers[0].name:
        return "first layer"
    return "classifier" if any(layer.name == name and layer.neuron is None for layer in run.layers) else ""


def columns(run: ShownRun) -> list[Column]:
    """Regrowth of each event, as shares of the largest."""
    most = max((max(r.regrown, r.rescued) for r in run.rounds), default=0) or 1
    return [
        Column(
            number,
            r.step,
            100 * r.regrown / most,
            100 * (r.survived or 0) / most,
            100 * r.rescued / most,
            f"mask update {number}, step {r.step}: {r.regrown:,} regrown, {r.rescued:,} rescued, "
            + ("no later cut" if r.survived is None else f"{r.survived:,} outlived the next cut"),
        )
        for number, r in enumerate(run.rounds, 1)
    ]


def regrowth_strips(run: ShownRun) -> list[Strip]:
    """A strip for each layer or group of channels: the number that each mask update regrew.

    Empty if the record has no layers.
    """
    names = dict.fromkeys(layer.name for layer in run.layers)
    if run.unit == "channels":
        names = dict.fromkeys(name for r in run.rounds for name in regrown_by_layer(r))
    most = max((n for r in run.rounds for n in regrown_by_layer(r).values()), default=0)
    if not most:
        return []

    def strip(name: str) -> Strip:
        counts = [regrown_by_layer(r).get(name, 0) for r in run.rounds]
        shades = tuple((math.sqrt(n / most), f"mask update {e}: {n:,}") for e, n in enumerate(counts, 1))
        return Strip(name, layer_note(run, name), shades, words.whole(sum(counts)))

    return [strip(name) for name in names]


def regrown_by_layer(update: Round) -> dict[str, int]:
    """Layer, or group of channels -> regrown in it; empty where that was not recorded."""
    return {name.removesuffix(".weight"): layer.regrown for name, layer in (update.layers or {}).items()}


def _networks(run: ShownRun) -> list[tuple[str, NetworkStatistics]]:
    """The networks that there are statistics of, the dense one first."""
    if not run.statistics:
        return []
    both = (("dense", run.statistics.dense), ("pruned", run.statistics.pruned))
    return [(kind, network) for kind, network in both if network]


def criticality_rows(run: ShownRun) -> list[tuple[str, list[Box]]]:
    """Neuron layer -> boxes of the dense and the pruned network; the axis ends at the value that holds at threshold."""
    networks = _networks(run)
    rows = []
    for name, neurons in networks[-1][1].neurons.items() if networks else ():
        if neurons.criticality:
            sides = [(kind, network.neurons[name]) for kind, network in networks if name in network.neurons]
            rows.append((name, [_box(kind, side, side.criticality) for kind, side in sides if side.criticality]))
    return rows


def rate_bars(run: ShownRun) -> list[Bar]:
    """Spikes per neuron and time step, of both networks, in percent of the largest."""
    sides = [(kind, network.neurons) for kind, network in _networks(run)]
    most = max((n.firing_rate for _, side in sides for n in side.values()), default=0) or 1

    def row(name: str) -> Bar:
        rates = [(kind, side[name].firing_rate) for kind, side in sides if name in side]
        parts = tuple((kind, 100 * rate / most) for kind, rate in rates)
        return Bar(name, "", parts, tuple(f"{rate:.4f}" for _, rate in rates))

    return [row(name) for name in (sides[-1][1] if sides else {})]


def operation_bars(run: ShownRun) -> list[Bar]:
    """Synaptic operations an image, of both networks, in percent of the largest."""
    sides = [(kind, network.layers) for kind, network in _networks(run)]
    most = max((o.acs + o.mac_ops for _, side in sides for o in side.values()), default=0) or 1

    def row(name: str) -> Bar:
        counts = [(kind, side[name]) for kind, side in sides if name in side]
        parts = tuple((kind, 100 * (o.acs + o.mac_ops) / most) for kind, o in counts)
        kinds = "multiply-accumulates" if counts[-1][1].mac_ops else "accumulates"
        return Bar(name, kinds, parts, tuple(words.short(o.acs + o.mac_ops) for _, o in counts))

    return [row(name) for name in (sides[-1][1] if sides else {})]


def channel_bars(run: ShownRun) -> list[Bar]:
    """Output channels of each layer before and after the physical cut."""
    most = max((before for before, _ in run.channels.values()), default=0) or 1
    return [
        Bar(
            name,
            "" if after < before else "unchanged",
            (("dense", 100 * before / most), ("pruned", 100 * after / most)),
            (words.whole(before), words.whole(after)),
        )
        for name, (before, after) in run.channels.items()
    ]


def races(run: ShownRun) -> list[Race]:
    """Measured speed; bars are images a second in percent of the fastest engine's."""
    return [
        _race(timing, [row for row in timing.rows if row.batch == batch])
        for timing in (run.bench.timings if run.bench else ())
        for batch in dict.fromkeys(row.batch for row in timing.rows)
    ]


def _race(timing: TimedThreads, rows: Sequence[EngineTime]) -> Race:
    by_name = {row.engine: row for row in rows}
    most = max(row.images_per_s for row in rows)

    def bar(row: EngineTime) -> Bar:
        factor = words.times(row.speedup, 1.0) if row.speedup is not None else ""
        part = ("pruned" if row.opponent else "dense", 100 * row.images_per_s / most)
        cells = (words.milliseconds(row.median_ms), words.short(row.images_per_s), factor)
        return Bar(row.engine, "", (part,), cells)

    threads = f"{timing.threads} thread{'s' if timing.threads > 1 else ''}"
    title = f"Batch {rows[0].batch}, {threads}, {CLOCKS[timing.clock]}"
    ours = [row for row in rows if row.opponent in by_name]
    finding = ""
    if ours:
        best = min(ours, key=lambda row: row.median_ms)
        rival = by_name[best.opponent or ""]
        # The same quantity as on the terminal: other work on the machine slows both engines of a round alike.
        speedup = best.speedup if best.speedup is not None else rival.median_ms / best.median_ms
        finding = (
            f"{words.compared(speedup, 1.0, 'faster', 'slower')}: {best.engine} takes "
            f"{words.milliseconds(best.median_ms)} ms where the fastest dense engine, {rival.engine}, takes "
            f"{words.milliseconds(rival.median_ms)} ms. Times are medians over rounds; the factor is the median of the "
            "ratios within a round, so it need not be the ratio of the two."
        )
    return Race(title, finding, tuple(bar(row) for row in rows))


def _box(kind: str, neurons: NeuronStatistics, criticality: Sequence[float]) -> Box:
    peak = 1.0 if neurons.peak is None else neurons.peak
    q = [max(0.0, min(100.0, 100 * value / peak)) for value in criticality]
    return Box(kind, q[1], q[2], q[4], q[5], q[3], criticality[3])


def _accuracy_axis(run: ShownRun, lines: Sequence[Sequence[Epoch]], last: int) -> tuple[tuple[Tick, ...], float, float]:
    """Ticks and ends. The first tenth of training may run below the axis, so that what follows can be told apart."""
    settled = [run.accuracy(e) for line in lines for e in line if e.epoch > 0.1 * last] or [0.0]
    low, high = min(settled), max(run.accuracy(e) for line in lines for e in line)
    low = max(0.0, min(low, high - 0.01))
    at = round_numbers(low, high, 4, least=2)
    step = at[1] - at[0]
    if at[0] > low:
        at.insert(0, at[0] - step)
    if at[-1] < high:
        at.append(at[-1] + step)
    bottom, top = max(0.0, at[0]), min(at[-1], 1.0)
    digits = max(0, -math.floor(math.log10(100 * step) + 1e-9))
    ticks = [Tick(100 - 100 * (v - bottom) / (top - bottom), f"{100 * v:.{digits}f} %") for v in at if v <= top + 1e-9]
    return tuple(ticks), bottom, top


def _stair(run: ShownRun, line: Sequence[Epoch], events: Sequence[float], last: float) -> list[tuple[float, float]]:
    """(epoch, sparsity) corners. Under a budget of costs the targets are shares of costs: there the epochs tell."""
    if run.settings.budget == "weights":
        jumps = [(at, r.target) for at, r in zip(events, run.rounds, strict=True)]
        start = run.rounds[0].target if run.settings.start == "random" else 0.0
    else:
        jumps, start = [(float(e.epoch), e.sparsity) for e in line], 0.0
    corners, now = [(0.0, start)], start
    for at, sparsity in jumps:
        corners += [(at, now), (at, sparsity)]
        now = sparsity
    return [*corners, (last, now)]


def _line(points: Iterable[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.2f} {y:.2f}" for x, y in points)
