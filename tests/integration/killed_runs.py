"""Run by test_run_resume.py in a forked process: runs that are killed over and over, in forked children.

A child is killed at a given moment (`killing`); the next child starts the same run again.

usage: killed_runs.py OUT
"""

import signal
import sys
from pathlib import Path

import torch
from killing import child

import spikeprune.lab.train.checkpointed as checkpointed
import spikeprune.lab.train.run as running
from spikeprune.lab.recipe import load
from spikeprune.lab.train import folder as folders
from spikeprune.lab.train.done import PhasesDone

WORDS = ["--epochs", "2", "--data.limit", "120", "--data.test_limit", "64", "--batch", "32", "--precision", "fp32"]
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
    job = running._RunInProgress(load("digits", WORDS), folders.RunFolder(Path("unused")), None, None, None)
    next(job.make_phase("pruned", PhasesDone()).begin().train_epoch())


def _child(out: Path, checkpoint_every: float, kill_at: int | None) -> int:
    def work() -> int:
        checkpointed._CHECKPOINT_EVERY = checkpoint_every
        running.run(load("digits", [*WORDS, "--out", str(out)]))
        return 0

    return child(work, kill_at)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
