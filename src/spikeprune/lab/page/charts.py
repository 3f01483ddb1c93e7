"""Small figures as inline SVG: they need no library, look alike everywhere, and print well."""

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

from spikeprune.record.text import tick

_WIDTH, _HEIGHT = 460.0, 300.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 58.0, 12.0, 10.0, 44.0
DENSE, PRUNED, INK, PAPER = (  # in light and in dark, as in style.css
    ("#7b8494", "#8f99a9"), ("#0b7a75", "#3cc4b8"), ("#15181e", "#e9ecf1"), ("#ffffff", "#0f1216"),
)  # fmt: skip
COLOURS = ("#3b6fd4", "#d4622a", "#2a9d5c", "#8e4bbf", "#c2307a", "#8a7a1e", "#1f9aa8", "#777784")
MARKS = len(COLOURS)  # then the shape changes: circles, squares, triangles
_ENTRY = 17.0  # height of a line of a picture's legend
_ROW = 20.0  # height of a row of a forest plot
_FAR = 4.0
_STYLE = """:root { color-scheme: light dark; }
text { font: 11px system-ui, sans-serif; fill: #66666d; } .middle { text-anchor: middle; }
.end { text-anchor: end; } .grid { stroke: #dcdce1; fill: none; } .line { fill: none; stroke-width: 1.5; }
.front { fill: none; stroke: #44444a; stroke-dasharray: 2 3; }
.level { fill: none; stroke: #7b8494; stroke-width: 1.5; stroke-dasharray: 7 4; }
@media (prefers-color-scheme: dark) { text { fill: #a6a6b0; } .grid { stroke: #3a3a42; } .front { stroke: #d8d8de; } }
"""


@final
@dataclass(frozen=True)
class Series:
    """Points (x, y) of one name, ascending in x where they are `joined`; `spread` is half of each point's interval.

    `seeds` are faint dots, one a run. `style` is the colour and mark; without it the place among the series.
    """

    name: str
    points: tuple[tuple[float, float], ...]
    spread: tuple[float, ...] = ()
    joined: bool = True
    seeds: tuple[tuple[float, float], ...] = ()
    style: int | None = None


@final
@dataclass(frozen=True)
class Level:
    """A horizontal line across a plot, such as the accuracy of the dense network."""

    name: str
    y: float


# The arms that most comparisons hold have one colour on every page.
_USUAL = {
    "dense": 7, "criticality": 0, "magnitude": 1, "random": 2, "gradient": 3, "rigl": 4, "squeeze": 6, "set": 5,
}  # fmt: skip


def styles(names: Sequence[str]) -> dict[str, int]:
    """Name -> number of its colour and mark. Well-known names keep the same number in every figure where they can."""
    found: dict[str, int] = {}
    for name in dict.fromkeys(names):
        usual = _USUAL.get(name.partition(",")[0].partition(" (n")[0].strip())
        if usual is not None and usual not in found.values():
            found[name] = usual
    free = (number for number in range(len(names) + MARKS) if number not in set(found.values()))
    for name in sorted(set(names) - set(found)):
        found[name] = next(free)
    return {name: found[name] for name in dict.fromkeys(names)}


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The Pareto front, ordered by x: the points for which no other point has x smaller or equal and y larger."""
    best: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or y > best[-1][1]:
            best.append((x, y))
    return best


def plot(
    series: Sequence[Series],
    x_name: str,
    y_name: str,
    *,
    log: bool = False,
    marked: Sequence[tuple[float, float]] = (),
    levels: Sequence[Level] = (),
    within: tuple[float, float] | None = None,
    at: Mapping[float, str] | None = None,
) -> str:
    """An SVG figure, or a sentence if there is no point.

    Args:
        log: the x axis is logarithmic; points at 0 or below are left out.
        marked: points of a front, joined by a thin line.
        levels: horizontal lines.
        within: the y axis never leaves this range, (0, 100) for percentages.
        at: the ticks of the x axis with their words; without it round numbers.
    """
    kept = [
        (s, [(p, s.spread[i] if s.spread else 0.0) for i, p in enumerate(s.points) if p[0] > 0 or not log])
        for s in series
    ]
    every = [(point, spread) for _, points in kept for point, spread in points]
    if not every:
        return '<p class="none">not applicable: no point to show</p>'
    x_low, x_high = _range([p[0] for p, _ in every], log)
    heights = [y for (_, v), s in every for y in (v - s, v + s)] + [level.y for level in levels]
    y_low, y_high = _range(heights + [y for s in series for _, y in s.seeds], False)
    if within is not None:
        y_low, y_high = max(y_low, within[0]), min(y_high, within[1])

    def x(value: float) -> float:
        share = (math.log10(value) - x_low) / (x_high - x_low) if log else (value - x_low) / (x_high - x_low)
        return round(_LEFT + share * (_WIDTH - _LEFT - _RIGHT), 2)

    def y(value: float) -> float:
        value = min(max(value, y_low), y_high)
        return round(_HEIGHT - _BOTTOM - (value - y_low) / (y_high - y_low) * (_HEIGHT - _TOP - _BOTTOM), 2)

    parts = [
        f'<svg viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" role="img" aria-label="{html.escape(f"{y_name} over {x_name}")}">'
    ]
    heights = round_numbers(y_low, y_high)
    for value, text in zip(heights, _alike(heights), strict=True):
        parts.append(f'<path class="grid" d="M{_LEFT} {y(value)}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text class="end" x="{_LEFT - 6}" y="{y(value) + 4}">{text}</text>')
    whole = all(float(p[0]).is_integer() for p, _ in every)
    round_ones = _log_ticks(x_low, x_high) if log else round_numbers(x_low, x_high, whole=whole)
    for value, text in (at or {value: tick(value) for value in round_ones}).items():
        parts.append(f'<text class="middle" x="{x(value)}" y="{_HEIGHT - _BOTTOM + 16}">{html.escape(text)}</text>')
    parts.append(f'<text class="middle" x="{(_LEFT + _WIDTH) / 2}" y="{_HEIGHT - 8}">{html.escape(x_name)}</text>')
    turned = f'transform="translate(13 {(_HEIGHT - _BOTTOM) / 2}) rotate(-90)"'
    parts.append(f'<text class="middle" {turned}>{html.escape(y_name)}</text>')
    if len(marked) > 1:
        parts.append(f'<path class="front" d="M{"L".join(f"{x(a)} {y(b)}" for a, b in marked if a > 0 or not log)}"/>')
    marks = [(x(a), y(b)) for s, points in kept for a, b in (*(p for p, _ in points), *s.seeds) if a > 0 or not log]
    names = []
    for level in levels:
        parts.append(f'<path class="level" d="M{_LEFT} {y(level.y)}H{_WIDTH - _RIGHT}"/>')
        under = y(level.y) + 13 if y(level.y) < _TOP + 16 else y(level.y) - 5
        names.append(_beside(level.name, under, marks))
    for place, (s, points) in enumerate(kept):
        number = place if s.style is None else s.style
        kind = f"m{number % MARKS}"
        parts += [
            f'<circle class="seed {kind}" cx="{x(a)}" cy="{y(b)}" r="2.2"/>' for a, b in s.seeds if a > 0 or not log
        ]
        if s.joined and len(points) > 1:
            parts.append(f'<path class="line {kind}" d="M{"L".join(f"{x(a)} {y(b)}" for (a, b), _ in points)}"/>')
        # Bars of joined series would cover each other where they share an x.
        aside = min(4, 24 / len(kept)) * (place - (len(kept) - 1) / 2) if s.joined and not log else 0.0
        for (a, b), spread in points:
            if spread:
                parts.append(f'<path class="line {kind}" d="M{x(a) + aside:g} {y(b - spread)}V{y(b + spread)}"/>')
            title = html.escape(f"{s.name}: {a:.4g}, {b:.4g}" + (f" ± {spread:.2g}" if spread else ""))
            parts.append(_mark(number, x(a), y(b), title))
    return "".join([*parts, *names, "</svg>"])


def _beside(name: str, y: float, marks: Sequence[tuple[float, float]]) -> str:
    """The name of a level at that end of it where fewer points lie, above all lines."""
    wide = 6.0 * len(name) + 8

    def covered(low: float, high: float) -> int:
        return sum(low - 6 < a < high + 6 and y - 16 < b < y + 6 for a, b in marks)

    right = covered(_WIDTH - _RIGHT - wide, _WIDTH - _RIGHT) <= covered(_LEFT, _LEFT + wide)
    place = f'class="end over" x="{_WIDTH - _RIGHT}"' if right else f'class="over" x="{_LEFT + 4}"'
    return f'<text {place} y="{y:g}">{html.escape(name)}</text>'


def _alike(values: Sequence[float]) -> list[str]:
    """Numbers beside an axis, all with as many decimals as one of them needs."""
    digits = max((len(f"{value:.4g}".partition(".")[2]) for value in values), default=0)
    plain = all("e" not in f"{value:.4g}" for value in values)
    return [f"{value:.{digits}f}" if plain else f"{value:.4g}" for value in values]


def legend(names: Sequence[str], style: Mapping[str, int] | None = None) -> str:
    """The names as an HTML list, each with its mark: the n-th mark, or that with the number in `style`."""
    items = (
        f'<li><svg viewBox="0 0 10 10">{_mark(n if style is None else style[name], 5, 5)}</svg>{html.escape(name)}</li>'
        for n, name in enumerate(names)
    )
    return f'<ul class="legend">{"".join(items)}</ul>'


def picture(panels: Sequence[str], names: Sequence[str]) -> str:
    """Plots, two in a row, and their legend as one SVG file, readable on light and dark pages."""
    half, rows = math.ceil(len(names) / 2), math.ceil(len(panels) / 2)
    width, below = min(len(panels), 2) * _WIDTH, rows * _HEIGHT + 14
    height = below + half * _ENTRY
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}"><style>{_STYLE}']
    parts += [f".m{n} {{ fill: {c}; stroke: {c}; }} .line.m{n} {{ fill: none; }}\n" for n, c in enumerate(COLOURS)]
    parts.append("</style>\n")
    for n, panel in enumerate(panels):
        inside = f'<svg x="{n % 2 * _WIDTH:g}" y="{n // 2 * _HEIGHT:g}" width="{_WIDTH:g}" height="{_HEIGHT:g}" '
        parts.append(panel.replace("<svg ", inside, 1) + "\n")
    for n, name in enumerate(names):
        left, top = _LEFT + n // half * width / 2, below + n % half * _ENTRY
        parts.append(f'{_mark(n, left, top - 4)}<text x="{left + 12:g}" y="{top:g}">{html.escape(name)}</text>\n')
    return "".join([*parts, "</svg>\n"])


@final
@dataclass(frozen=True)
class Difference:
    """A row of a forest plot: a mean with half of its interval, and what each seed gave."""

    name: str
    mean: float
    half: float | None
    each: tuple[float, ...]


def forest(rows: Sequence[Difference], x_name: str) -> str:
    """Differences and their intervals, one row a name, as an SVG file of its own; faint dots are seeds.

    Rows far off would leave no room for the others: beyond `_FAR` times the median distance to 0, and twice what the
    intervals and seeds of the others take, a row is an arrow.
    """
    reach = _FAR * sorted(abs(row.mean) for row in rows)[len(rows) // 2] or math.inf
    close = [row for row in rows if abs(row.mean) <= reach]
    reach = max(reach, 2 * max(abs(end) for row in close for end in _ends(row)))
    near = [row for row in rows if abs(row.mean) <= reach]
    low, high = _range([0.0, *(end for row in near for end in _ends(row))], False)
    left, right, width = 300.0, 800.0, 920.0
    height = _TOP + len(rows) * _ROW + _BOTTOM

    def x(value: float) -> float:
        return round(left + (min(max(value, low), high) - low) / (high - low) * (right - left), 2)

    bottom = height - _BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}"><style>{_STYLE}',
        f".m {{ fill: {COLOURS[0]}; stroke: {COLOURS[0]}; }} .seed {{ fill: {COLOURS[0]}; opacity: .35; }}</style>\n",
    ]
    for value in round_numbers(low, high):
        parts.append(f'<path class="{"front" if value == 0 else "grid"}" d="M{x(value)} {_TOP}V{bottom:g}"/>')
        parts.append(
            f'<text class="middle" x="{x(value)}" y="{bottom + 16:g}">{f"{value:+.3g}" if value else 0}</text>\n'
        )
    parts.append(f'<text class="middle" x="{(left + right) / 2}" y="{height - 8:g}">{html.escape(x_name)}</text>\n')
    for number, row in enumerate(rows):
        y = _TOP + (number + 0.5) * _ROW
        said = f"{row.mean:+.2f}" + (f" ± {row.half:.2f}" if row.half is not None else "")
        parts.append(f'<text class="end" x="{left - 10}" y="{y + 4:g}">{html.escape(row.name)}</text>')
        parts.append(f'<text x="{right + 14}" y="{y + 4:g}">{said}</text>')
        if row not in near:
            edge, back = (x(low), 7) if row.mean < 0 else (x(high), -7)
            parts.append(f'<path class="m" d="M{edge:g} {y:g}l{back} -4v8z"/>\n')
            continue
        parts += [f'<circle class="seed" cx="{x(value):g}" cy="{y:g}" r="2.5"/>' for value in row.each]
        if row.half is not None:
            parts.append(f'<path class="line m" d="M{x(row.mean - row.half):g} {y:g}H{x(row.mean + row.half):g}"/>')
        parts.append(f'<circle class="m" cx="{x(row.mean):g}" cy="{y:g}" r="4"/>\n')
    return "".join([*parts, "</svg>\n"])


def _ends(row: Difference) -> tuple[float, ...]:
    half = row.half or 0.0
    return row.mean - half, row.mean + half, *row.each


def _mark(number: int, x: float, y: float, title: str = "") -> str:
    kind, shape = f"m{number % MARKS}", number // MARKS % 3
    said = f"<title>{title}</title>" if title else ""
    if shape == 0:
        return f'<circle class="{kind}" cx="{x:g}" cy="{y:g}" r="4">{said}</circle>'
    if shape == 1:
        return f'<rect class="{kind}" x="{x - 3.5:g}" y="{y - 3.5:g}" width="7" height="7">{said}</rect>'
    return f'<path class="{kind}" d="M{x - 4.5:g} {y + 4:g}H{x + 4.5:g}L{x:g} {y - 4.5:g}Z">{said}</path>'


def _range(values: Sequence[float], log: bool) -> tuple[float, float]:
    if log:
        values = [math.log10(value) for value in values]
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or (0.3 if log else 0.5 * abs(high) or 1.0)
    return low - margin, high + margin


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten; within two decades also twice and five times these."""
    steps = (1, 2, 5) if high - low < 2 else (1,)
    exponents = range(math.floor(low), math.ceil(high) + 1)
    ticks = [m * 10.0**e for e in exponents for m in steps if low <= math.log10(m * 10.0**e) <= high]
    if len(ticks) > 1:
        return ticks
    return round_numbers(10**low, 10**high)  # one tick alone gives no scale; within a decade plain round numbers do


def round_numbers(low: float, high: float, about: int = 5, *, whole: bool = False, least: int = 0) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten from `low` to `high`.

    Args:
        about: number of them that is aimed at.
        whole: whole numbers only.
        least: how many there are in any case; the last ones may then be above `high`.
    """
    raw = (high - low or 1e-9) / about
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * m for m in (1, 2, 5, 10) if size * m >= raw * 0.999)
    step = max(1.0, step) if whole else step
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, max(last + 1, first + least))]
