"""A progress bar with the time left, on a terminal; and a line for each epoch to whoever asked for it."""

import sys
from collections.abc import Callable
from types import TracebackType
from typing import final

from spikeprune.record.epoch import Epoch

OnEpoch = Callable[[Epoch, int], object]
OnStage = Callable[[str], None]


def epoch_line(line: Epoch, epochs: int, method: str = "") -> str:
    """pruned epoch 3/16  loss 0.412  accuracy 87.30% (val. 85.10%)  sparsity 0.6125.

    Args:
        method: of the recipe. The one training of a dense run is its pruned phase in files, and is called dense here.
    """
    phase = "dense" if method == "dense" else line.phase
    held = "" if line.val_accuracy is None else f" (val. {line.val_accuracy:.2%})"
    sparsity = f"  sparsity {line.sparsity:.4f}" if line.sparsity else ""
    return (
        f"{phase} epoch {line.epoch}/{epochs}  loss {line.train_loss:.3f}  "
        f"accuracy {line.train_accuracy:.2%}{held}{sparsity}"
    )


@final
class ProgressBar:
    """Steps of the whole run, shown on stderr. Use in a `with`.

    Args:
        total: optimizer steps of all phases together.
        done: steps that an earlier process has done; they do not count for the time left.
        on_epoch: hears each epoch.
        on_stage: hears what a run does between epochs, such as scoring, where there is no bar to show it.
    """

    def __init__(
        self, total: int, done: int = 0, on_epoch: OnEpoch | None = None, on_stage: OnStage | None = None
    ) -> None:
        self._bar = None
        self._on_stage = on_stage
        self._on_epoch = on_epoch
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(
                *columns, console=Console(stderr=True), transient=True, redirect_stdout=sys.stdout.isatty()
            )
            self._task = self._bar.add_task("", total=total, completed=done)

    def advance(self, text: str) -> None:
        """One step done; `text` says where the run is."""
        if self._bar is not None:
            self._bar.update(self._task, advance=1, description=text)

    def stage(self, text: str) -> None:
        """Shows what the run does now, for work that is no training step."""
        if self._bar is not None:
            self._bar.update(self._task, description=text)
        elif self._on_stage is not None:
            self._on_stage(text)

    def epoch(self, line: Epoch, epochs: int) -> None:
        """An epoch has ended; what its listener prints stands above the bar and stays."""
        if self._on_epoch is not None:
            self._on_epoch(line, epochs)

    def __enter__(self) -> "ProgressBar":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
