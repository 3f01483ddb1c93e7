"""A progress bar with the time left, on a terminal; silence elsewhere."""

import sys
from types import TracebackType
from typing import final


@final
class ProgressBar:
    """Steps of the whole run, shown on stderr. Use in a `with`.

    Args:
        total: optimizer steps of all phases together.
        done: steps that an earlier process has done; they do not count for the time left.
    """

    def __init__(self, total: int, done: int = 0):
        self._bar = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task("", total=total, completed=done)

    def advance(self, text: str) -> None:
        """One step done; `text` says where the run is."""
        if self._bar is not None:
            self._bar.update(self._task, advance=1, description=text)

    def __enter__(self) -> "ProgressBar":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
