"""Run by test_run_resume.py in a process of its own: runs that are killed over and over, in forked children.

A moment is a training step, a line of metrics, or either side of a file's renaming. A child is killed (SIGKILL, by
itself) at a given moment; the next child starts the same run again. Forking spares each of them the imports.

usage: killed_runs.py OUT
"""

import itertools
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import spikeprune.train.run as running
from spikeprune.train import folder as folders
from spikeprune.train.loop import Phase
from spikeprune.train.recipe import load

WORDS = ["--epochs", "2", "--data.limit", "120", "--batch", "32", "--precision", "fp32"]
# Killed at these moments of its life, a child of the first chain comes an epoch further at most; of the second, whose
# checkpoints come after every step, a few steps.
CHAINS = {"by-epoch": (60.0, [3, 13, 17, 19]), "by-step": (0.0, [9, 21, 33])}


def main(out: Path) -> None:
    torch.set_num_threads(1)
    _import_everything()
    _child(out / "undisturbed", 60.0, None)
    for name, (every, moments) in CHAINS.items():
        for moment in moments:
            assert _child(out / name, every, moment) == -signal.SIGKILL, f"{name} ended before moment {moment}"
        assert _child(out / name, every, None) == 0


def _import_everything() -> None:
    """One step in this process: what it imports on the way is there in all children."""
    job = running._Job(load("digits", WORDS), folders.RunFolder(Path("unused")))
    next(job.make_phase("pruned", {}).begin().train_epoch())


def _child(out: Path, checkpoint_every: float, kill_at: int | None) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            running._CHECKPOINT_EVERY = checkpoint_every
            if kill_at is not None:
                _arm(kill_at)
            running.run(load("digits", [*WORDS, "--out", str(out)]))
            os._exit(0)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _arm(kill_at: int) -> None:
    moments = itertools.count(1)

    def moment() -> None:
        if next(moments) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    rename, add_metrics, train_epoch = os.replace, folders.RunFolder.add_metrics, Phase.train_epoch

    def replace(*paths: Any) -> None:
        moment()
        rename(*paths)
        moment()

    def add(self: folders.RunFolder, line: Any) -> int:
        length = add_metrics(self, line)
        moment()
        return length

    def train(self: Phase) -> Iterator[float]:
        for loss in train_epoch(self):
            moment()
            yield loss

    os.replace, folders.RunFolder.add_metrics, Phase.train_epoch = replace, add, train  # type: ignore[assignment]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
