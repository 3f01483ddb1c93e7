"""Numbers as a person reads them. Every factor stands beside what was divided by what."""

import math

_SIZES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def whole(value: float) -> str:
    """28,960."""
    return f"{value:,.0f}"


def percent(share: float, digits: int = 2) -> str:
    """97.46 %; the space does not break."""
    return f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%"


def short(value: float, unit: str = "") -> str:
    """Three digits and a prefix: 4.78 M, 116 kB."""
    for size, prefix in _SIZES:
        if abs(value) >= 0.9995 * size:
            return f"{_three(value / size)} {prefix}{unit}"
    return f"{_three(value)} {unit}".rstrip(" ")


def energy(picojoule: float) -> str:
    """51.8 nJ."""
    for size, unit in ((1e9, "mJ"), (1e6, "µJ"), (1e3, "nJ")):
        if abs(picojoule) >= 0.9995 * size:
            return f"{_three(picojoule / size)} {unit}"
    return f"{_three(picojoule)} pJ"


def times(dense: float, pruned: float) -> str:
    """How many times the pruned one goes into the dense one: 20.0×; the two numbers stand beside it."""
    if pruned == 0:
        return "nothing left" if dense else "1×"
    value = dense / pruned
    if value >= 99.95:
        return f"{value:,.0f}×"
    return f"{value:.1f}×" if value >= 9.995 else f"{value:.2f}×"


def compared(dense: float, pruned: float, fewer: str = "less", more: str = "more") -> str:
    """In words: 20.0× fewer, 1.25× more, the same."""
    if pruned == dense:
        return "the same"
    if pruned == 0:
        return "nothing left"
    return f"{times(dense, pruned)} {fewer}" if dense > pruned else f"{times(pruned, dense)} {more}"


def milliseconds(value: float) -> str:
    """Three digits: 0.0912, 4.20, 228."""
    return f"{value:,.0f}" if value >= 99.95 else f"{value:#.3g}"


def duration(seconds: float) -> str:
    """41 s, 12 min, 3.4 h."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def points(difference: float) -> str:
    """An accuracy's distance to another, in percentage points: 0.28 points below."""
    size = f"{100 * abs(difference):.2f}"
    if size == "0.00":
        return "exactly as" if difference == 0 else "within 0.005 points of"
    return f"{size}\N{NO-BREAK SPACE}points {'above' if difference > 0 else 'below'}"


def standard_error(accuracy: float, images: int) -> float:
    """sqrt(p (1 - p) / n): how far chance alone moves an accuracy measured on n images."""
    return math.sqrt(max(0.0, accuracy * (1 - accuracy)) / max(1, images))


def _three(value: float) -> str:
    size = abs(value)
    if size >= 99.95:
        return f"{value:,.0f}"
    if size >= 9.995 or size == 0:
        return f"{value:.1f}" if size and value != round(value) else f"{value:.0f}"
    return f"{value:.2f}" if size >= 0.01 else f"{value:.2g}"
