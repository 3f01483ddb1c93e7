"""What pruning costs, as a share of a training step of VGG-16 (the paper's unstructured variant, 32x32, T = 5, B = 16).

    python benchmarks/overhead.py [--batch 16] [--rounds 3] [--interval 2000] [--optimizer sgd|adamw] [--json FILE]

One thread, CPU seconds (`time.process_time`), medians of interleaved rounds in one process. A row is what a step with
it costs more than the plain step of the same round, or what the part costs when timed by itself where it can be.

    recording        a training step with criticality's hooks (unit neuron, and unit synapse on its own line)
    over an interval recording in one step of `--interval`
    upkeep           gradients and weights of 14.7 M weights held at 0, at 95 % sparsity, in every step
    event            scores, global selection, regrowth, new masks, without the recording
Goals: recording <= 10 %, over an interval <= 0.5 %, upkeep <= 1 %, event <= 10 %.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

import spikeprune as sp
from spikeprune.model.adapter import adapter_for
from spikeprune.runtime import native

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, weight_decay=1e-4),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3),
}


def seconds(run: Callable[[], object]) -> float:
    """CPU seconds of one call."""
    start = time.process_time()
    run()
    return time.process_time() - start


class Case:
    """A network, its optimizer and a Pruner whose event is far away, at the sparsity that it starts from."""

    def __init__(self, batch: int, optimizer: str, unit: str, sparsity: float = 0.95) -> None:
        torch.manual_seed(0)
        self.model = sp.model("vgg16-weights", classes=10, T=5, size=32)
        self.adapter = adapter_for(self.model)
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        self.x = torch.rand(batch, 3, 32, 32)
        self.y = torch.randint(10, (batch,))
        method = sp.Criticality(regrow=sp.Constant(0.2), unit=unit)
        far = sp.Constant(sparsity, end=4_000_000, every=1_000_000)
        self.pruner = sp.Pruner(self.model, method, far, start="random").attach(self.optimizer)

    def step(self) -> None:
        """One training step; the optimizer's own part is left to the caller's hooks."""
        loss = F.cross_entropy(self.model(self.x).mean(0), self.y)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.adapter.reset(self.model)

    def recording(self) -> None:
        """The same step with the hooks on, as it is right before an event."""
        self.pruner._observer.prepare(membrane=True, rates=False)
        self.step()

    def upkeep(self) -> None:
        """What every step adds once weights are dead: gradients before the update, weights behind it."""
        self.pruner._space.parts.upkeep.hold_grads()
        self.pruner._space.parts.upkeep.after_step(closure=False, clean=True)

    def event(self) -> None:
        """One event, on what the last step recorded; its hooks are forgotten with it."""
        self.pruner._steps.make(self.pruner.preview()[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--interval", type=int, default=2000)
    parser.add_argument("--optimizer", choices=sorted(OPTIMIZERS), default="sgd")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cases = {unit: Case(options.batch, options.optimizer, unit) for unit in ("neuron", "synapse")}
    for case in cases.values():
        case.step()  # traces, and fills the optimizer's state
    times: dict[str, list[float]] = {}

    def note(row: str, run: Callable[[], object]) -> None:
        times.setdefault(row, []).append(seconds(run))

    for _ in range(options.rounds):
        note("step", cases["neuron"].step)
        for unit, case in cases.items():
            note(f"recording {unit}", case.recording)
            note(f"event {unit}", case.event)
        note("upkeep", cases["neuron"].upkeep)
    plain = statistics.median(times["step"]) - statistics.median(times["upkeep"])
    upkeep = statistics.median(times["upkeep"])

    def extra(row: str) -> float:
        return statistics.median(t - upkeep - plain for t in times[row]) / plain

    shares = {
        "recording step, unit neuron": (extra("recording neuron"), 0.10),
        "recording step, unit synapse": (extra("recording synapse"), None),
        f"over {options.interval} steps, unit neuron": (extra("recording neuron") / options.interval, 0.005),
        f"mask upkeep, every step ({options.optimizer})": (upkeep / plain, 0.01),
        "update event, unit neuron": (statistics.median(times["event neuron"]) / plain, 0.10),
        "update event, unit synapse": (statistics.median(times["event synapse"]) / plain, 0.10),
    }
    print(
        f"{native.cpu_name()}; torch {torch.__version__}, 1 thread, batch {options.batch}, T = 5, "
        f"plain step {plain:.2f} s"
    )
    for row, (share, goal) in shares.items():
        print(f"{row:42} {share:8.3%}" + ("" if goal is None else f"   goal <= {goal:.1%}"))
    if options.json is not None:
        record = {"cpu": native.cpu_name(), "step_seconds": plain, "shares": {k: v for k, (v, _) in shares.items()}}
        options.json.write_text(
            json.dumps(record | {"options": {k: str(v) for k, v in vars(options).items()}}, indent=2)
        )


if __name__ == "__main__":
    main()
