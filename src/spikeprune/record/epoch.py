"""metrics.jsonl: one line for each epoch."""

import json
from pathlib import Path
from typing import final

from spikeprune.host.files import ordinary
from spikeprune.record.base import Count, Impossible, Number, Positive, Record, Share, recorded, whole


@final
@recorded
class Epoch(Record):
    """One epoch of the dense or the pruned run.

    Args:
        phase: "dense", "pretrain" or "pruned".
        epoch: counted from 1 over the whole run.
        step: optimizer steps until its end.
        train_loss, train_accuracy: over the epoch, while the weights changed.
        seen_loss, seen_accuracy: at its end, in eval mode, on as many training images as are held out.
        val_loss, val_accuracy: on the validation split; None without one.
    """

    phase: str
    epoch: Count
    step: Count
    lr: Positive
    train_loss: Number
    train_accuracy: Share
    seen_loss: Number | None = None
    seen_accuracy: Share | None = None
    val_loss: Number | None
    val_accuracy: Share | None
    sparsity: Share


def read_epochs(path: Path) -> tuple[Epoch, ...]:
    """The lines of a metrics.jsonl. Raises: Damaged in one line that names the file, the line and the key."""
    with whole(path):
        lines = ordinary(path).read_text(encoding="utf-8").splitlines()
        if not lines:
            raise Impossible("it holds no epoch")
        return tuple(Epoch.read(json.loads(line), f"line {number}") for number, line in enumerate(lines, 1))
