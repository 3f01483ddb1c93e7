"""What `python tests/torture.py kills` kills: runs, squeezes, shrinks, reports and sweeps with workers.

Each work is done once undisturbed and then again, killed one to three times at moments drawn by a seed; what it leaves
must be the same bit for bit. A kill is SIGKILL, SIGTERM or Ctrl-C at a moment (`killing`), or the end of a time.
"""

import contextlib
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import killed_runs
from killing import child

from spikeprune.cli import report, shrink, squeeze, sweep
from spikeprune.lab.recipe import load
from spikeprune.lab.sweep import workers
from spikeprune.lab.train import checkpointed, measure
from spikeprune.lab.train import run as running

MOMENTS = 90  # of a run with a checkpoint after every step; later moments are after its end
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
SPARSE = ["--model", "digits-conv", "--epochs", "1", "--data.limit", "64", "--T", "2", "--sparsity", "0.99"]
SPARSE += ["--prune.begin", "0ep", "--prune.end", "0.5ep", "--baseline", "false", "--precision", "fp32"]
SQUEEZE = ["digits", "--sparsity", "0.8", "--images", "40", "--rounds", "2", "--rows", "300"]
SWEEP = """
model: mlp
epochs: 2
batch: 16
T: 2
precision: fp32
data: {name: digits, limit: 100}
prune: {begin: 0ep, end: 1ep, every: 0.25ep}
methods: [criticality]
sparsities: [0.5]
seeds: [0, 1]
baseline: false
"""


@dataclass
class Work:
    """A command that can be killed and given again: `start` in a folder, and the files that it leaves."""

    files: ClassVar[tuple[str, ...]] = ("model.safetensors", "masks.safetensors", "metrics.jsonl")
    out: Path
    every: float = 60.0

    def prepare(self) -> None:
        """Makes what the command reads, in the folder of the work."""

    def act(self) -> None:
        checkpointed._CHECKPOINT_EVERY = self.every
        running.run(load("digits", [*killed_runs.WORDS, "--out", str(self.out)]))

    def start(self, kill_at: int | float | None = None, by: int = signal.SIGKILL) -> int:
        def work() -> int:
            with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
                self.act()
            return 0

        return child(work, kill_at, by)

    def moment(self, draw: random.Random) -> int | float:
        return draw.randint(1, MOMENTS)

    def left(self) -> dict[str, bytes]:
        return {
            str(path.relative_to(self.out)): path.read_bytes()
            for name in self.files
            for path in sorted(self.out.glob(f"*/{name}"))
        }


class Squeezed(Work):
    files = ("model.safetensors", "masks.safetensors")

    def act(self) -> None:
        measure._COUNTED = 64
        squeeze.main([*SQUEEZE, "--out", str(self.out)])

    def moment(self, draw: random.Random) -> int | float:
        return draw.randint(1, 12) if draw.random() < 0.5 else draw.uniform(0.05, 4.0)


class OnARun(Work):
    """A command on a finished run, which is made once and copied."""

    finished: ClassVar[dict[str, Path]] = {}
    longest = 2.0

    def prepare(self) -> None:
        if not self.finished:
            first = self.out.parent / "finished"
            running.run(load("digits", [*SPARSE, "--out", str(first)]))
            self.finished["run"] = next(first.iterdir())
        shutil.copytree(self.finished["run"], self.out / "run", ignore=shutil.ignore_patterns("report.html"))

    def moment(self, draw: random.Random) -> int | float:
        return draw.randint(1, 5) if draw.random() < 0.5 else draw.uniform(0.02, self.longest)


class Shrunk(OnARun):
    files = ("plan.json", "small.safetensors", "record.json")

    def act(self) -> None:
        shrink.main([str(self.out / "run")])


class Reported(OnARun):
    files = ("report.html", "record.json")
    longest = 0.6

    def act(self) -> None:
        report.main([str(self.out / "run")])


class Swept(Work):
    """Two worker processes, which are forked here to spare them the imports; the parent alone is killed."""

    def prepare(self) -> None:
        self.out.mkdir()
        (self.out.parent / "tiny.yaml").write_text(SWEEP)

    def act(self) -> None:
        forked = multiprocessing.get_context("fork")
        workers.multiprocessing.get_context = lambda _: forked
        words = [str(self.out.parent / "tiny.yaml"), "--workers", "2", "--out", str(self.out)]
        if sweep.main(words) != 0:
            raise RuntimeError("a run of the sweep failed")

    def moment(self, draw: random.Random) -> int | float:
        return draw.uniform(0.2, 8.0)


KINDS: dict[str, Callable[..., Work]] = {
    "run": Work, "squeeze": Squeezed, "shrink": Shrunk, "report": Reported, "sweep": Swept
}  # fmt: skip
ORDER = ["run"] * 6 + ["squeeze", "shrink", "report", "sweep"]
_wanted: dict[str, dict[str, bytes]] = {}


def kill(number: int, folder: Path) -> tuple[str, bool, int]:
    """Kills the work of a number, and does it to its end: (its kind, whether all is the same, how often it was hit)."""
    draw = random.Random(f"kill {number}")
    kind = ORDER[number % len(ORDER)]
    if kind not in _wanted:
        undisturbed = KINDS[kind](folder / f"undisturbed-{kind}")
        undisturbed.prepare()
        if undisturbed.start() != 0 or not undisturbed.left():
            raise RuntimeError(f"{kind} fails without a kill")
        _wanted[kind] = undisturbed.left()
    work = KINDS[kind](folder / str(number), draw.choice((0.0, 60.0)))
    work.prepare()
    struck = 0
    for _ in range(draw.randint(1, 3)):
        struck += work.start(work.moment(draw), draw.choice(SIGNALS)) != 0
    ended = _to_its_end(work)
    same = ended and work.left() == _wanted[kind]
    if same:
        shutil.rmtree(work.out, ignore_errors=True)
    return kind, same, struck


def _to_its_end(work: Work) -> bool:
    """The last start; workers of a killed sweep may hold their runs for a moment longer."""
    for _ in range(5):
        if work.start() == 0:
            return True
        time.sleep(2)
    return False
