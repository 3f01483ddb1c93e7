"""Lines on a terminal: broken between words at its width, with a little colour. Piped output stays as it is."""

import os
import shutil
import sys
import textwrap
from collections.abc import Iterable
from typing import Literal, TextIO

_CODES = {"bold": "1", "red": "31", "yellow": "33"}


def terminal_width() -> int | None:
    """Columns of the terminal that stdout is; None where the output goes elsewhere, which has no width."""
    return max(40, shutil.get_terminal_size().columns) if sys.stdout.isatty() else None


def show(lines: Iterable[str], hang: int = 2) -> None:
    """Print lines of text, each within the terminal's width. Tables and paths are printed as they are elsewhere.

    Args:
        hang: spaces before what a line carries on.
    """
    width = terminal_width()
    for line in lines:
        print(line if width is None or len(line) <= width else _broken(line, width, " " * hang))


def _broken(line: str, width: int, indent: str) -> str:
    """textwrap keeps double spaces within a line; a long word, such as a path, stays whole."""
    return "\n".join(
        textwrap.wrap(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    )


def paint(text: str, colour: Literal["bold", "red", "yellow"], stream: TextIO | None = None) -> str:
    """The text in a colour where the stream (default stdout) is a terminal and NO_COLOR is not set."""
    to: TextIO = sys.stdout if stream is None else stream
    if not to.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return f"\x1b[{_CODES[colour]}m{text}\x1b[0m"
