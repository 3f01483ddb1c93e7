"""This checkout against another one: what a step, a mask update, compiling and a compiled call take, new over old.

    python benchmarks/against.py OLD_CHECKOUT [--new CHECKOUT] [--pairs 9] [--fresh] [--only WORD] [--json FILE]

Two workers stay alive, one with each checkout's `src` on PYTHONPATH, and measure in turn; who goes first alternates.
One thread, CPU seconds (`time.process_time`). A row is the median over the pairs of new / old, with the smallest and
the largest. Only names of `sp` are used, so the same workers run on old and new checkouts. A checkout against itself
shows how far a ratio can be trusted here. Where tensors lie in memory differs from process to process, and changes the
time of the same functions by up to a tenth; `--fresh` starts both workers anew for each pair. Exit status 1 if a median
is above the limit.

    training step    of digits-conv-wide (batch 64, T = 4) with a Pruner attached, between two mask updates
    with an update   the same, a mask update in every step: recording, scores, selection, regrowth
    mask update      `optimizer.step()` alone where it updates the masks of fashion-conv-fc (0.8 M weights)
    compile          fashion-conv-large (64-64-P-128-128-P-fc), 95 % sparse, up to its first outputs
    compiled call    the same network on 16 images
"""

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
LIMIT = 1.03
FAR = 5_000  # steps: beyond what is measured


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, metavar="OLD_CHECKOUT")
    parser.add_argument("--new", type=Path, default=Path(__file__).resolve().parents[1], metavar="CHECKOUT")
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--fresh", action="store_true", help="new workers for each pair")
    parser.add_argument("--only", default="", metavar="WORD", help="only rows whose name contains it")
    parser.add_argument("--limit", type=float, default=LIMIT, help="largest median that is accepted")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE")
    arguments = parser.parse_args()
    sides = {"old": Worker(arguments.old), "new": Worker(arguments.new)}
    machine = {name: worker.ask("machine") for name, worker in sides.items()}
    print(f"{machine['new']['processor']}, torch {machine['new']['torch']}, one thread, {arguments.pairs} pairs")
    print(f"{'':<42}{'old ms':>10}{'new ms':>10}{'new/old':>9}  smallest to largest")
    rows: dict[str, Any] = {}
    for name in (name for name in CASES if arguments.only in name):
        if arguments.fresh:
            rows[name] = row = compare_fresh(arguments.old, arguments.new, name, arguments.pairs)
        else:
            rows[name] = row = compare(sides, name, arguments.pairs)
        print(
            f"{name:<42}{row['old ms']:>10.2f}{row['new ms']:>10.2f}{row['median']:>9.3f}"
            f"  {row['smallest']:.3f} to {row['largest']:.3f}",
            flush=True,
        )
    if arguments.json is not None:
        found = {"machine": machine["new"], "pairs": arguments.pairs, "rows": rows}
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    slower = [name for name, row in rows.items() if row["median"] > arguments.limit]
    print(f"above {arguments.limit:g}: {', '.join(slower) or 'none'}")
    return 1 if slower or not rows else 0


class Worker:
    """A process that imports one checkout and answers one line with one line."""

    def __init__(self, checkout: Path) -> None:
        source = checkout.resolve() / "src"
        if not (source / "spikeprune" / "__init__.py").is_file():
            raise SystemExit(f"{checkout} is no checkout of spikeprune: it has no src/spikeprune; give its root folder")
        environment = {**os.environ, **ONE_THREAD, "PYTHONPATH": str(source)}
        self._process = subprocess.Popen(
            [sys.executable, __file__, "worker"],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        loaded = Path(self.ask("machine")["package"])
        if loaded != source / "spikeprune":
            raise SystemExit(f"the worker of {checkout} imported {loaded}; unset what puts that before PYTHONPATH")

    def ask(self, name: str) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(name, file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"a worker ended at {name!r}; what it printed stands above")
        return json.loads(answer)

    def end(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def compare(sides: dict[str, Worker], name: str, pairs: int) -> dict[str, float]:
    """Medians over pairs that take turns; the first, which loads and warms up, does not count."""
    seconds: dict[str, list[float]] = {"old": [], "new": []}
    for pair in range(pairs + 1):
        for side in ("old", "new") if pair % 2 else ("new", "old"):
            seconds[side].append(sides[side].ask(name))
    return _summary(seconds["old"][1:], seconds["new"][1:])


def compare_fresh(old: Path, new: Path, name: str, pairs: int) -> dict[str, float]:
    """As `compare`; a worker measures three times and counts with its fastest, since it lives for one pair alone."""
    seconds: dict[str, list[float]] = {"old": [], "new": []}
    for pair in range(pairs):
        sides = {"old": Worker(old), "new": Worker(new)}
        turns = [("old", "new") if (pair + turn) % 2 else ("new", "old") for turn in range(4)]
        asked: dict[str, list[float]] = {"old": [], "new": []}
        for turn in turns:
            for side in turn:
                asked[side].append(sides[side].ask(name))
        for side, worker in sides.items():
            seconds[side].append(min(asked[side][1:]))
            worker.end()
    return _summary(seconds["old"], seconds["new"])


def _summary(old: list[float], new: list[float]) -> dict[str, float]:
    ratios = [b / a for a, b in zip(old, new, strict=True)]
    return {
        "old ms": 1000 * statistics.median(old),
        "new ms": 1000 * statistics.median(new),
        "median": statistics.median(ratios),
        "smallest": min(ratios),
        "largest": max(ratios),
    }


def work() -> None:
    """A worker: makes a case when it is first asked for, and measures it each time."""
    import torch

    import spikeprune as sp

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    answers, sys.stdout = sys.stdout, sys.stderr  # what frameworks print is no answer
    made: dict[str, Callable[[], float]] = {}
    for line in sys.stdin:
        name = line.strip()
        if name == "machine":
            answer: Any = {
                "processor": _processor(),
                "torch": torch.__version__,
                "package": str(Path(sp.__file__).parent),
            }
        else:
            if name not in made:
                torch.manual_seed(0)
                made[name] = CASES[name]()
                made[name]()
            gc.collect()
            answer = made[name]()
        print(json.dumps(answer), file=answers, flush=True)


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown processor")


def _repeated(call: Callable[[], object], times: int) -> Callable[[], float]:
    def measure() -> float:
        start = time.process_time()
        for _ in range(times):
            call()
        return (time.process_time() - start) / times

    return measure


class _Training:
    """A network in training, a Pruner and a batch."""

    def __init__(self, network: str, size: int, batch: int, method: str, every: int, fused: bool) -> None:
        import torch

        import spikeprune as sp

        self.model = sp.model(network, classes=10, T=4, size=size)
        if fused:
            sp.fuse(self.model)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
        how = sp.Criticality(regrow=sp.Constant(0.2)) if method == "criticality" else sp.Magnitude()
        self.pruner = sp.Pruner(self.model, how, sp.Constant(0.9, end=4 * FAR, every=every), start="random")
        self.pruner.attach(self.optimizer)
        self.x, self.y = torch.rand(batch, 1, size, size), torch.randint(10, (batch,))

    def backward(self) -> None:
        import torch.nn.functional as F
        from spikingjelly.activation_based import functional

        functional.reset_net(self.model)
        loss = F.cross_entropy(self.model(self.x).mean(0), self.y)
        self.optimizer.zero_grad()
        loss.backward()

    def step(self) -> None:
        self.backward()
        self.optimizer.step()


def _step(method: str, every: int, fused: bool) -> Callable[[], Callable[[], float]]:
    return lambda: _repeated(_Training("digits-conv-wide", 8, 64, method, every, fused).step, 3)


def _update(method: str) -> Callable[[], Callable[[], float]]:
    def make() -> Callable[[], float]:
        training = _Training("fashion-conv-fc", 28, 2, method, 1, False)

        def measure() -> float:
            spent = 0.0
            for _ in range(4):
                training.backward()
                start = time.process_time()
                training.optimizer.step()
                spent += time.process_time() - start
            return spent / 4

        return measure

    return make


def _sparse() -> tuple[Any, Any]:
    import torch
    from spikingjelly.activation_based import functional
    from torch import nn

    import spikeprune as sp

    model = sp.model("fashion-conv-large", classes=10, T=4, size=28)
    x = torch.rand(16, 1, 28, 28)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # so that some of the neurons fire
            nn.init.uniform_(module.bias, -0.2, 0.4)
    model(x)
    functional.reset_net(model)
    sp.prune(model.eval(), "magnitude", sparsity=0.95)
    return model, x


def _compile() -> Callable[[], float]:
    import spikeprune as sp

    model, x = _sparse()
    return _repeated(lambda: sp.compile(model, x)(x), 1)


def _call() -> Callable[[], float]:
    import spikeprune as sp

    model, x = _sparse()
    compiled = sp.compile(model, x)
    return _repeated(lambda: compiled(x), 10)


CASES: dict[str, Callable[[], Callable[[], float]]] = {
    "training step, fused": _step("criticality", FAR, True),
    "training step, plain": _step("criticality", FAR, False),
    "with an update, criticality, fused": _step("criticality", 1, True),
    "with an update, magnitude, fused": _step("magnitude", 1, True),
    "mask update, criticality": _update("criticality"),
    "mask update, magnitude": _update("magnitude"),
    "compile": _compile,
    "compiled call": _call,
}


if __name__ == "__main__":
    sys.exit(work() if sys.argv[1:] == ["worker"] else main())
