"""Figures as text, for pages and terminals: short numbers, durations, and tables whose columns line up."""

from collections.abc import Collection, Sequence
from io import StringIO

_SIZES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def three(value: float) -> str:
    """Three digits: 4.78, 116, 0.0091."""
    size = abs(value)
    if size >= 99.95:
        return f"{value:,.0f}"
    if size >= 9.995 or size == 0:
        return f"{value:.1f}" if size and value != round(value) else f"{value:.0f}"
    return f"{value:.2f}" if size >= 0.01 else f"{value:.2g}"


def short(value: float, unit: str = "") -> str:
    """Three digits and a prefix: 4.78 M, 116 kB."""
    scaled, prefix = _scaled(value)
    return f"{three(scaled)} {prefix}{unit}".rstrip(" ")


def tick(value: float) -> str:
    """A round number beside an axis: 1 k, 0.5, 20 M."""
    scaled, prefix = _scaled(value)
    return f"{scaled:.3g} {prefix}".rstrip(" ")


def _scaled(value: float) -> tuple[float, str]:
    return next(((value / size, prefix) for size, prefix in _SIZES if abs(value) >= 0.9995 * size), (value, ""))


def duration(seconds: float) -> str:
    """41 s, 12 min, 3.4 h."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def aligned(rows: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> list[str]:
    """One line a row, in columns as wide as their widest cell, two spaces apart.

    Args: left: the columns that are flush left; numbers are flush right.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2, 0, 0))
    for column in range(len(rows[0])):
        grid.add_column(justify="left" if column in left else "right", no_wrap=True)
    for row in rows:
        grid.add_row(*map(Text, row))
    width = sum(max(map(len, column)) + 2 for column in zip(*rows, strict=True))
    console = Console(file=StringIO(), width=2 * width, color_system=None, force_terminal=False, legacy_windows=False)
    with console.capture() as caught:
        console.print(grid)
    return [line.rstrip() for line in caught.get().splitlines()]
