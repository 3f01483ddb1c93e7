"""Run by test_sweep.py in a process of its own: sweeps in forked children, one of them killed again and again.

A moment is a training step or either side of a file's renaming. A child is killed (SIGKILL, by itself) at a random
moment; the next child starts the same sweep again. Forking spares each of them the imports.

usage: killed_sweeps.py FOLDER     (which holds tiny.yaml)
"""

import contextlib
import itertools
import json
import os
import random
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from spikeprune.cli import sweep
from spikeprune.report import write_report
from spikeprune.study.sweep import read_sweep
from spikeprune.train.loop import Phase
from spikeprune.train.run import run


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    file = str(folder / "tiny.yaml")
    _import_everything(file, folder)
    assert _child([file, "--out", str(folder / "undisturbed")], None) == 0
    draw = random.Random(6)
    moments = [draw.randint(2, 30) for _ in range(5)]
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
    pid = os.fork()
    if pid == 0:
        try:
            if kill_at is not None:
                _arm(kill_at)
            with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
                os._exit(sweep.main(words))
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _arm(kill_at: int) -> None:
    moments = itertools.count(1)

    def moment() -> None:
        if next(moments) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    rename, train_epoch = os.replace, Phase.train_epoch

    def replace(*paths: Any) -> None:
        moment()
        rename(*paths)
        moment()

    def train(self: Phase) -> Iterator[float]:
        for loss in train_epoch(self):
            moment()
            yield loss

    os.replace, Phase.train_epoch = replace, train  # type: ignore[assignment]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
