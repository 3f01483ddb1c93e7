"""live.html: a run while it goes, from recipe.yaml and metrics.jsonl; a browser loads it again by itself."""

import time
from collections.abc import Sequence
from pathlib import Path

from spikeprune.core.errors import UserError
from spikeprune.lab.page.charts import Series, legend, plot, styles
from spikeprune.lab.page.kit import Section, render
from spikeprune.lab.recipe import load
from spikeprune.lab.train.folder import RunFolder
from spikeprune.record.epoch import Epoch, read_epochs
from spikeprune.record.whole import write_whole


def watch(path: str | Path, every: float = 5.0, most: int | None = None) -> Path:
    """Writes live.html of a running folder until the run is finished, then removes it.

    Args:
        every: seconds between two looks.
        most: looks at most; None: until the run is finished.
    Returns: live.html while the run goes on, record.json's folder's report.html once it is finished.
    Raises: UserError if there is no run folder.
    """
    folder = RunFolder(Path(path))
    if not folder.recipe.is_file():
        raise UserError(f"no run folder {path}; `spikeprune run RECIPE` makes one, and --watch follows it")
    live = folder.path / "live.html"
    looks = 0
    while not folder.record.is_file():
        write_whole(live, live_page(folder, max(1, round(every))).encode())
        looks += 1
        if most is not None and looks >= most:
            return live
        time.sleep(every)
    live.unlink(missing_ok=True)
    return folder.report


def live_page(folder: RunFolder, refresh: int) -> str:
    """Accuracy, loss and sparsity so far."""
    recipe = load(str(folder.recipe))
    epochs = read_epochs(folder.metrics) if folder.metrics.is_file() else ()
    over = f"{folder.path.name}: {recipe.model} on {recipe.data.name}, {recipe.method}, sparsity {recipe.sparsity:g}"
    if not epochs:
        return render("No epoch has ended yet", ["The first numbers come with it."], [], [], over=over, refresh=refresh)
    last = epochs[-1]
    phase = "dense" if recipe.method == "dense" else last.phase
    title = f"{phase.capitalize()}, epoch {last.epoch} of {recipe.epochs}: {_accuracy(last):.2%}"
    lead = [f"Training loss {last.train_loss:.3f}, sparsity {last.sparsity:.4f}, learning rate {last.lr:.3g}."]
    return render(title, lead, [_curves(epochs, recipe.method)], [], over=over, refresh=refresh)


def _curves(epochs: Sequence[Epoch], method: str) -> Section:
    phases = list(dict.fromkeys(line.phase for line in epochs))
    arms = styles(["dense", method])  # the colours that they have in comparisons
    style = {phase: arms[method if phase == "pruned" else "dense"] for phase in phases}

    def series(value: str) -> list[Series]:
        return [
            Series(
                phase, tuple((float(e.epoch), _value(e, value)) for e in epochs if e.phase == phase), style=style[phase]
            )
            for phase in phases
        ]

    figures = (
        (plot(series("accuracy"), "epoch", "accuracy, %", within=(0.0, 100.0)), "Accuracy on images held out, if any."),
        (plot(series("loss"), "epoch", "training loss"), "Mean cross-entropy per training image."),
        (plot(series("sparsity"), "epoch", "sparsity, %", within=(0.0, 100.0)), "Share of the weights that is 0."),
    )
    return Section("So far", figures=figures, legend=legend(phases, style))


def _value(line: Epoch, name: str) -> float:
    return {"accuracy": 100 * _accuracy(line), "loss": line.train_loss, "sparsity": 100 * line.sparsity}[name]


def _accuracy(line: Epoch) -> float:
    return line.train_accuracy if line.val_accuracy is None else line.val_accuracy
