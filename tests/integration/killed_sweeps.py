"""Run by test_sweep.py in a forked process: sweeps in forked children, one of them killed again and again.

A child is killed at a random moment (`killing`); the next child starts the same sweep again.

usage: killed_sweeps.py FOLDER     (which holds tiny.yaml)
"""

import contextlib
import json
import os
import random
import signal
import sys
from pathlib import Path

import torch
from killing import child

from spikeprune.cli import sweep
from spikeprune.lab.page import write_report
from spikeprune.lab.sweep.sweep import read_sweep
from spikeprune.lab.train.run import run


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    file = str(folder / "tiny.yaml")
    _import_everything(file, folder)
    assert _child([file, "--out", str(folder / "undisturbed")], None) == 0
    draw = random.Random(6)
    moments = [draw.randint(2, 18) for _ in range(5)]
    (folder / "moments.json").write_text(json.dumps(moments))
    killed = [file, "--out", str(folder / "killed")]
    for moment in moments:
        assert _child(killed, moment) == -signal.SIGKILL, f"the sweep ended before moment {moment}"
    assert _child(killed, None) == 0
    for task in (1, 2):
        assert _child([file, "--out", str(folder / "array"), "--array", f"{task}/2"], None) == 0


def _import_everything(file: str, folder: Path) -> None:
    """One run in this process: what it imports on the way is there in all children."""
    task = read_sweep(file, ["--seeds", "5", "--out", str(folder / "before")]).tasks[-1]
    write_report(run(task.recipe))


def _child(words: list[str], kill_at: int | None) -> int:
    def work() -> int:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            return sweep.main(words)

    return child(work, kill_at)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
