"""A bar with the time left, or none."""

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, final

Step = TypeVar("Step")


@final
class Progress:
    """Tells a bar of rich how far the work is; does nothing without one."""

    def __init__(self, bar: Any = None) -> None:
        self.bar, self.task = bar, None

    def begin(self, what: str, total: int) -> None:
        """A new part of the work, with so many steps."""
        if self.bar is not None:
            if self.task is not None:
                self.bar.remove_task(self.task)
            self.task = self.bar.add_task(what, total=total)

    def advance(self) -> None:
        """Counts one finished step."""
        if self.bar is not None:
            self.bar.advance(self.task)

    def over(self, batches: Sequence[Step], what: str) -> Iterator[Step]:
        """The batches, one step each."""
        self.begin(what, len(batches))
        for batch in batches:
            yield batch
            self.advance()


@contextmanager
def progress_bar(show: bool) -> Generator[Progress]:
    """A bar on stderr while it is open, if it is to be shown."""
    if not show:
        yield Progress()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns: Iterable[Any] = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        yield Progress(bar)
