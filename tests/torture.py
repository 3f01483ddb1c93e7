"""The long tests, some hours in all; each part goes on where it was stopped (build/torture/PART.json).

    python tests/torture.py [PART ...] [--count N]      parts: kills compiled cases steps

kills     200 commands (runs, squeezes, shrinks, reports, sweeps with workers) are killed one to three times, at moments
          drawn by a seed, by SIGKILL, SIGTERM or Ctrl-C, and must end bit for bit alike
compiled  1,000,000 changed compiled files, guided by what they reach: refused or run, no signal, no hang
cases     100,000 changed recipes, records, statistics, plans, masks and states: read, or refused in one line
steps     20,000 steps with 1,000 mask updates: memory must not grow

Parts may run at once, each in a process of its own: `python tests/torture.py compiled & python tests/torture.py kills`.
They write many small files and wait for the disk: TMPDIR=/dev/shm spares them that.
"""

import argparse
import functools
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE / "integration")]
BUILD = HERE.parent / "build" / "torture"


class Progress:
    """How far a part is, what it found, and what it took."""

    def __init__(self, part: str) -> None:
        BUILD.mkdir(parents=True, exist_ok=True)
        self.part, self.file, self._since = part, BUILD / f"{part}.json", time.perf_counter()
        self.said: dict[str, Any] = {"done": 0, "seconds": 0.0, "found": {}}
        if self.file.exists():
            self.said = json.loads(self.file.read_text())

    @property
    def done(self) -> int:
        return self.said["done"]

    @property
    def found(self) -> dict[str, int]:
        return self.said["found"]

    def note(self, done: int, found: Mapping[str, int]) -> None:
        """Written whole, so that a stop at any moment loses the last piece of work at most."""
        self.said["done"] = done
        self.said["seconds"] += time.perf_counter() - self._since
        self._since = time.perf_counter()
        for key, number in found.items():
            self.found[key] = self.found.get(key, 0) + number
        beside = self.file.with_suffix(".part")
        beside.write_text(json.dumps(self.said, indent=1))
        os.replace(beside, self.file)
        print(f"{self.part}: {done} {self.found} {self.said['seconds']:.0f} s", flush=True)


def kills(progress: Progress, count: int) -> bool:
    import killed_commands
    import killed_runs

    if progress.done < count:
        killed_runs._import_everything()
    with tempfile.TemporaryDirectory() as name:
        for number in range(progress.done, count):
            kind, same, struck = killed_commands.kill(number, Path(name))
            progress.note(number + 1, {f"{kind} identical" if same else f"WRONG {kind} {number}": 1, "kills": struck})
    return not any(key.startswith("WRONG") for key in progress.found)


def compiled(progress: Progress, count: int, size: int = 5000) -> bool:
    import fuzz_compiled

    corpus = BUILD / "corpus"
    fuzz_compiled.begin(corpus)
    with tempfile.TemporaryDirectory() as name:
        for begin in range(progress.done, count, size):
            progress.note(begin + size, fuzz_compiled.separately(corpus, begin, size, Path(name)))
    return set(progress.found) <= {"refused", "ran"}


def cases(progress: Progress, count: int, size: int = 500) -> bool:
    import fuzz_records

    names = sorted(fuzz_records.kinds())
    with tempfile.TemporaryDirectory() as folder:
        for begin in range(progress.done, count, size):
            kind = names[begin // size % len(names)]
            work = functools.partial(fuzz_records.cases, kind, begin, size, Path(folder))
            progress.note(begin + size, fuzz_records.apart(work, size, f"{kind}, seed {begin}", 1))
    return set(progress.found) <= {"refused", "accepted"}


def steps(progress: Progress, count: int) -> bool:
    """One training; the largest resident set after the first tenth is compared with that at the end."""
    import spikeprune as sp
    from nets import conv_net, sgd, train

    if progress.done < count:
        model = conv_net()
        optimizer = sgd(model)
        schedule = sp.Cubic(to=0.9, begin=0, end=count, every=max(1, count // 1000))
        pruner = sp.Pruner(model, "criticality", schedule).attach(optimizer)
        train(model, optimizer, count // 10)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        train(model, optimizer, count - count // 10, first=count // 10 + 1)
        growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
        updates = len(pruner.rounds)
        progress.note(count, {"grew" if growth > 32 else "steady": 1, "MiB more": growth, "mask updates": updates})
    return "grew" not in progress.found


PARTS: dict[str, tuple[Callable[[Progress, int], bool], int]] = {
    "kills": (kills, 200), "compiled": (compiled, 1_000_000), "cases": (cases, 100_000), "steps": (steps, 20_000)
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="PART")
    parser.add_argument("--count", type=int, help="in place of the part's own number")
    options = parser.parse_args()
    torch.set_num_threads(1)
    wrong = 0
    for name in options.parts or PARTS:
        part, count = PARTS[name]
        held = part(Progress(name), options.count or count)
        wrong += not held
        print(f"{name}: {'held' if held else 'WRONG'}", flush=True)
    return wrong


if __name__ == "__main__":
    sys.exit(main())
