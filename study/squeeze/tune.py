"""Training after a squeeze, beside gradual pruning: accuracy over CPU seconds, at 95 % of Fashion-MNIST's network.

    python study/squeeze/tune.py --root DATA --weights DIR

All arms start from the same trained dense network and see the same images with labels. An epoch here is 6,000 of the
59,000 training images, so that five times the epochs fit on one core. Gradual pruning cuts from 0 to 95 % over the
first 70 % of its steps. The rate of 0.03 is the same for all arms. Each result is appended to
study/squeeze/tuning.jsonl at once; results that are there are not made again.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, final

import torch
import torch.nn.functional as F
from run import SEEDS, accuracy, calibration, read, recipe_of, trained
from spikingjelly.activation_based import functional
from torch import Tensor, nn

import spikeprune as sp
from spikeprune.data import Dataset, batches
from spikeprune.lab.train.device import repeatable
from spikeprune.lab.train.pretrained import data_of

RESULTS = Path(__file__).parent / "tuning.jsonl"
SPARSITY, EPOCH, BATCH, RATE = 0.95, 6_000, 64, 0.03
CUTS = 20  # mask updates of gradual pruning
SQUEEZES: dict[str, dict[str, int]] = {"squeeze": {}, "polished": {"images": 5000, "polish": 2}}


@final
@dataclasses.dataclass(frozen=True)
class Tuning:
    """One training: from which network, by which arm, how long, how fast, and what it is scored on."""

    network: str
    arm: str
    epochs: int
    rate: float
    split: str

    @property
    def key(self) -> str:
        """The same for the same training."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)


def plan() -> Iterator[Tuning]:
    """All trainings: one epoch after the squeeze against one, five and ten of gradual pruning, then three."""
    for own in ((0, 1), (3,)):
        for network in SEEDS:
            for epochs in own:
                for arm in SQUEEZES:
                    yield Tuning(network, arm, epochs, RATE, "test")
            if own == (0, 1):
                yield Tuning(network, "magnitude", 10, RATE, "test")
            for epochs in (max(own), 5 * max(own)):
                for arm in ("magnitude", "criticality"):
                    yield Tuning(network, arm, epochs, RATE, "test")


def train(model: nn.Module, pruner: sp.Pruner, data: Dataset, epochs: int, rate: float) -> None:
    """SGD with momentum 0.9 and a cosine from `rate` to 0; labels are used."""
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9, nesterov=True, weight_decay=2e-4)
    pruner.attach(optimizer)
    sp.fuse(model)
    steps = epochs * (EPOCH // BATCH)
    course = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    for step, (x, target) in enumerate(_feed(data, steps)):
        functional.reset_net(model)
        loss = F.cross_entropy(model(x).mean(0), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        course.step()
        assert step < steps
    pruner.finish()
    sp.unfuse(model)
    functional.reset_net(model)
    model.eval()


def _feed(data: Dataset, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """So many batches, drawn from the whole training split."""
    epoch = 0
    while True:
        for pair in batches(data, "train", BATCH, shuffle=True, seed=0, epoch=epoch):
            if steps == 0:
                return
            steps -= 1
            yield pair
        epoch += 1


def result_of(job: Tuning, data: Dataset, weights: Path | None) -> dict[str, Any]:
    """Trains and scores; the line of the file."""
    model = trained(job.network, weights)
    before = time.process_time()
    deciding = 0.0
    if job.arm in SQUEEZES:
        settings = {"images": 500, **SQUEEZES[job.arm]}
        sp.squeeze(model, calibration(data, 0, settings["images"]), SPARSITY, seed=0, **settings)
        deciding = time.process_time() - before
        if job.epochs:
            train(model, sp.hold(model), data, job.epochs, job.rate)
    else:
        steps = job.epochs * (EPOCH // BATCH)
        end = int(0.7 * steps)
        method = sp.Magnitude() if job.arm == "magnitude" else sp.Criticality()
        pruner = sp.Pruner(model, method, sp.Cubic(SPARSITY, begin=0, end=end, every=max(1, end // CUTS)))
        train(model, pruner, data, job.epochs, job.rate)
        deciding = 0.7 * (time.process_time() - before)  # masks change until 70 % of the steps are done
    seconds = time.process_time() - before
    chosen = data.validation if job.split == "validation" else data.test
    assert chosen is not None
    alive = sum(int((p != 0).sum()) for n, p in model.named_parameters() if p.ndim > 1)
    total = sum(p.numel() for p in model.parameters() if p.ndim > 1)
    return {
        **dataclasses.asdict(job),
        "accuracy": accuracy(model, job.network, dataclasses.replace(data, test=chosen)),
        "reached": 1 - alive / total,
        "cpu_seconds": round(seconds, 1),
        "deciding_seconds": round(deciding, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, help="folder of the datasets, as for `spikeprune run`")
    parser.add_argument("--weights", type=Path, help="folder of the weights of seeds 1 to 4, made by train.py")
    parser.add_argument("--minutes", type=float, default=60.0, help="no training is begun after this time")
    given = parser.parse_args()
    end = time.monotonic() + 60 * given.minutes
    names = [field.name for field in dataclasses.fields(Tuning)]
    known = {Tuning(**{name: line[name] for name in names}).key for line in read(RESULTS)}
    data = data_of(recipe_of(SEEDS[0]), given.root)
    for job in plan():
        if job.key in known:
            continue
        if time.monotonic() > end:
            return
        with repeatable(threads=1):
            line = result_of(job, data, given.weights)
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
