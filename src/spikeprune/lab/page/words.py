"""Numbers as a person reads them. Every factor stands beside what was divided by what."""

import math
import re

from spikeprune.record import text as plain

_TIED = re.compile(
    r"(?<=\d) (?=(?:%|[kMGTP]?B|[kMGTP]|[pnµm]J|ms|s|min|h|points?)(?![\w%]))"  # 24.6 kB, 90 %
    r"|(?<=\d)(?=%)"  # 90%: terminals print no space, pages do
    r"|(?<=\S) (?=± )|(?<=±) (?=\d)|(?<=\bn) (?==)|(?<=\bn[ \u00a0]=) (?=\d)"
)


def bound(text: str) -> str:
    """The text with a space that does not break between each number and its unit, and around ±."""
    return _TIED.sub("\N{NO-BREAK SPACE}", text)


def sentence(text: str) -> str:
    """The text with a capital letter in front and a full stop behind."""
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith(('.', '?', '!')) else '.'}"


def short(value: float, unit: str = "") -> str:
    """A number with three digits and a prefix, such as 4.78 M or 116 kB; the space does not break."""
    return bound(plain.short(value, unit))


def duration(seconds: float) -> str:
    """A duration in a fitting unit, such as 41 s, 12 min or 3.4 h; the space does not break."""
    return bound(plain.duration(seconds))


def whole(value: float) -> str:
    """A number rounded to a whole one, with commas, such as 28,960."""
    return f"{value:,.0f}"


def percent(share: float, digits: int = 2) -> str:
    """A share in percent, such as 97.46 %; the space does not break."""
    return f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%"


def energy(picojoule: float) -> str:
    """An energy with three digits and a fitting unit from pJ to mJ, such as 51.8 nJ; the space does not break."""
    for size, unit in ((1e9, "mJ"), (1e6, "µJ"), (1e3, "nJ")):
        if abs(picojoule) >= 0.9995 * size:
            return bound(f"{plain.three(picojoule / size)} {unit}")
    return bound(f"{plain.three(picojoule)} pJ")


def times(dense: float, pruned: float) -> str:
    """dense / pruned as a factor, such as 20.0×. The page shows the two numbers beside it."""
    if pruned == 0:
        return "nothing left" if dense else "1×"
    value = dense / pruned
    if value >= 99.95:
        return f"{value:,.0f}×"
    return f"{value:.1f}×" if value >= 9.995 else f"{value:.2f}×"


def compared(dense: float, pruned: float, fewer: str = "less", more: str = "more") -> str:
    """A comparison in words: 20.0× fewer, 1.25× more, or the same."""
    if pruned == dense:
        return "the same"
    if pruned == 0:
        return "nothing left"
    return f"{times(dense, pruned)} {fewer}" if dense > pruned else f"{times(pruned, dense)} {more}"


def milliseconds(value: float) -> str:
    """A time in milliseconds with three digits, such as 0.0912, 4.20 or 228; larger ones are whole."""
    return f"{value:,.0f}" if value >= 99.95 else f"{value:#.3g}"


def points(difference: float) -> str:
    """An accuracy's distance to another, in percentage points: 0.28 points below."""
    size = f"{100 * abs(difference):.2f}"
    if size == "0.00":
        return "exactly as" if difference == 0 else "within 0.005 points of"
    return f"{size}\N{NO-BREAK SPACE}points {'above' if difference > 0 else 'below'}"


def standard_error(accuracy: float, images: int) -> float:
    """sqrt(p (1 - p) / n): how far chance alone moves an accuracy measured on n images."""
    return math.sqrt(max(0.0, accuracy * (1 - accuracy)) / max(1, images))
