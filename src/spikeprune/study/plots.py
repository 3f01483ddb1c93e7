"""Small figures as inline SVG: they need no library, look alike everywhere, and print well."""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

_WIDTH, _HEIGHT = 460.0, 300.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 58.0, 12.0, 10.0, 44.0
MARKS = 8  # kinds of marks that the style sheet colours


@final
@dataclass(frozen=True)
class Series:
    """Points (x, y) of one name, ascending in x where they are `joined`; `spread` is half of each point's interval."""

    name: str
    points: tuple[tuple[float, float], ...]
    spread: tuple[float, ...] = ()
    joined: bool = True


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other beats: nowhere is there one with smaller or equal x and larger y (Pareto), by x."""
    best: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or y > best[-1][1]:
            best.append((x, y))
    return best


def plot(
    series: Sequence[Series], x_name: str, y_name: str, *, log: bool = False, marked: Sequence[tuple[float, float]] = ()
) -> str:
    """An SVG figure, or a sentence if there is no point.

    Args:
        log: the x axis is logarithmic; points at 0 or below are left out.
        marked: points of a front, joined by a thin line.
    """
    kept = [
        (s, [(p, s.spread[i] if s.spread else 0.0) for i, p in enumerate(s.points) if p[0] > 0 or not log])
        for s in series
    ]
    every = [(point, spread) for _, points in kept for point, spread in points]
    if not every:
        return '<p class="none">not applicable: no point to show</p>'
    x_low, x_high = _range([p[0] for p, _ in every], log)
    y_low, y_high = _range([y for (_, v), s in every for y in (v - s, v + s)], False)

    def x(value: float) -> float:
        share = (math.log10(value) - x_low) / (x_high - x_low) if log else (value - x_low) / (x_high - x_low)
        return round(_LEFT + share * (_WIDTH - _LEFT - _RIGHT), 2)

    def y(value: float) -> float:
        return round(_HEIGHT - _BOTTOM - (value - y_low) / (y_high - y_low) * (_HEIGHT - _TOP - _BOTTOM), 2)

    parts = [
        f'<svg viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" role="img" aria-label="{html.escape(f"{y_name} over {x_name}")}">'
    ]
    for value in _ticks(y_low, y_high):
        parts.append(f'<path class="grid" d="M{_LEFT} {y(value)}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text class="end" x="{_LEFT - 6}" y="{y(value) + 4}">{value:.4g}</text>')
    for value in (10.0**e for e in range(math.ceil(x_low), math.floor(x_high) + 1)) if log else _ticks(x_low, x_high):
        parts.append(f'<text class="middle" x="{x(value)}" y="{_HEIGHT - _BOTTOM + 16}">{value:.4g}</text>')
    parts.append(f'<text class="middle" x="{(_LEFT + _WIDTH) / 2}" y="{_HEIGHT - 8}">{html.escape(x_name)}</text>')
    turned = f'transform="translate(13 {(_HEIGHT - _BOTTOM) / 2}) rotate(-90)"'
    parts.append(f'<text class="middle" {turned}>{html.escape(y_name)}</text>')
    if len(marked) > 1:
        parts.append(f'<path class="front" d="M{"L".join(f"{x(a)} {y(b)}" for a, b in marked if a > 0 or not log)}"/>')
    for number, (s, points) in enumerate(kept):
        kind = f"m{number % MARKS}"
        if s.joined and len(points) > 1:
            parts.append(f'<path class="line {kind}" d="M{"L".join(f"{x(a)} {y(b)}" for (a, b), _ in points)}"/>')
        for (a, b), spread in points:
            if spread:
                parts.append(f'<path class="line {kind}" d="M{x(a)} {y(b - spread)}V{y(b + spread)}"/>')
            title = html.escape(f"{s.name}: {a:.4g}, {b:.4g}" + (f" ± {spread:.2g}" if spread else ""))
            parts.append(f'<circle class="{kind}" cx="{x(a)}" cy="{y(b)}" r="4"><title>{title}</title></circle>')
    return "".join([*parts, "</svg>"])


def legend(names: Sequence[str]) -> str:
    """The names with their marks, in the order of the series."""
    items = (
        f'<li><svg viewBox="0 0 10 10"><circle class="m{n % MARKS}" cx="5" cy="5" r="4"/></svg>{html.escape(name)}</li>'
        for n, name in enumerate(names)
    )
    return f'<ul class="legend">{"".join(items)}</ul>'


def _range(values: Sequence[float], log: bool) -> tuple[float, float]:
    if log:
        values = [math.log10(value) for value in values]
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or 0.5 * abs(high) or 1.0
    if log:
        return math.floor(low), max(math.ceil(high), math.floor(low) + 1)
    return low - margin, high + margin


def _ticks(low: float, high: float) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten, about five of them."""
    raw = (high - low) / 5
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * m for m in (1, 2, 5, 10) if size * m >= raw * 0.999)
    return [round(i * step, 12) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
