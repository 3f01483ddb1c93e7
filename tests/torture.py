"""The long tests, some hours in all; each part goes on where it was stopped (build/torture/progress.json).

    python tests/torture.py [PART ...]      parts: kills compiled cases steps

kills     200 runs are killed (SIGKILL) one to three times, at moments drawn by a seed, and must end bit for bit alike
compiled  1,000,000 changed compiled files: refused or run, no signal, no hang
cases     100,000 changed recipes, records, statistics, plans, masks and states: read, or refused in one line
steps     20,000 steps with 1,000 mask updates: memory must not grow
"""

import contextlib
import json
import os
import random
import resource
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE / "integration")]
BUILD = HERE.parent / "build" / "torture"
MOMENTS = 90  # of a run with a checkpoint after every step; later moments are after its end


class Progress:
    """What is over: part -> how far, and what was found."""

    def __init__(self) -> None:
        BUILD.mkdir(parents=True, exist_ok=True)
        self.file = BUILD / "progress.json"
        self.parts: dict[str, dict[str, Any]] = json.loads(self.file.read_text()) if self.file.exists() else {}

    def of(self, part: str) -> dict[str, Any]:
        return self.parts.setdefault(part, {"done": 0, "found": {}})

    def note(self, part: str, done: int, found: dict[str, int]) -> None:
        """Written whole, so that a stop at any moment loses the last piece of work at most."""
        before = self.of(part)
        before["done"] = done
        for key, number in found.items():
            before["found"][key] = before["found"].get(key, 0) + number
        beside = self.file.with_suffix(".part")
        beside.write_text(json.dumps(self.parts, indent=1))
        os.replace(beside, self.file)
        print(f"{part}: {done} {before['found']}", flush=True)


def kills(progress: Progress, count: int = 200) -> bool:
    import killed_runs

    killed_runs._import_everything()
    with tempfile.TemporaryDirectory() as name:
        assert killed_runs._child(Path(name) / "undisturbed", 60.0, None) == 0
        wanted = _result(Path(name) / "undisturbed")
        for number in range(progress.of("kills")["done"], count):
            draw, out = random.Random(f"kill {number}"), Path(name) / str(number)
            every = draw.choice((0.0, 60.0))
            struck = 0
            for _ in range(draw.randint(1, 3)):
                with contextlib.redirect_stdout(None):
                    struck += killed_runs._child(out, every, draw.randint(1, MOMENTS)) == -signal.SIGKILL
            ended = killed_runs._child(out, every, None) == 0
            same = ended and _result(out) == wanted
            progress.note("kills", number + 1, {"identical" if same else f"WRONG {number}": 1, "kills": struck})
    return set(progress.of("kills")["found"]) == {"identical", "kills"}


def _result(out: Path) -> dict[str, bytes]:
    (folder,) = out.iterdir()
    names = ("model.safetensors", "masks.safetensors", "metrics.jsonl")
    return {name: (folder / name).read_bytes() for name in names}


def compiled(progress: Progress, count: int = 1_000_000, size: int = 2000) -> bool:
    import fuzz_compiled
    from compiled_nets import good_file

    with tempfile.TemporaryDirectory() as name:
        path, x = good_file(Path(name))
        header, data = fuzz_compiled.parts(path)
        for begin in range(progress.of("compiled")["done"], count, size):
            found = fuzz_compiled.separately(header, data, x, begin, size, Path(name))
            progress.note("compiled", begin + size, found)
    return set(progress.of("compiled")["found"]) <= {"refused", "ran"}


def cases(progress: Progress, count: int = 100_000, size: int = 500) -> bool:
    import functools

    import fuzz_records

    names = sorted(fuzz_records.kinds())
    with tempfile.TemporaryDirectory() as folder:
        for begin in range(progress.of("cases")["done"], count, size):
            kind = names[begin // size % len(names)]
            work = functools.partial(fuzz_records.cases, kind, begin, size, Path(folder))
            progress.note("cases", begin + size, fuzz_records.apart(work, size, f"{kind}, seed {begin}"))
    return set(progress.of("cases")["found"]) <= {"refused", "accepted"}


def steps(progress: Progress, count: int = 20_000) -> bool:
    """One training; the largest resident set after the first tenth is compared with that at the end."""
    import spikeprune as sp
    from nets import conv_net, sgd, train

    if progress.of("steps")["done"]:
        return "grew" not in progress.of("steps")["found"]
    model = conv_net()
    optimizer = sgd(model)
    sp.Pruner(model, "criticality", sp.Cubic(to=0.9, begin=0, end=count, every=count // 1000)).attach(optimizer)
    train(model, optimizer, count // 10)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    train(model, optimizer, count - count // 10, first=count // 10 + 1)
    growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    progress.note("steps", count, {"grew" if growth > 32 else "steady": 1, "MiB": growth})
    return growth <= 32


PARTS: dict[str, Callable[[Progress], bool]] = {"kills": kills, "compiled": compiled, "cases": cases, "steps": steps}


def main() -> int:
    if "--help" in sys.argv or not set(sys.argv[1:]) <= set(PARTS):
        print(__doc__)
        return 0 if "--help" in sys.argv else 2
    torch.set_num_threads(1)
    progress, wrong = Progress(), 0
    for name in sys.argv[1:] or PARTS:
        wrong += not PARTS[name](progress)
    print(json.dumps(progress.parts, indent=1))
    return wrong


if __name__ == "__main__":
    sys.exit(main())
