"""Squeezes trained networks with one setting after another: `python study/squeeze/run.py --root DATA --minutes 60`.

Each result is appended to study/squeeze/results.jsonl at once. Results that are there are not made again, so a run that
was stopped goes on where it was.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, final

import torch

import spikeprune as sp
from spikeprune.data import Dataset, batches
from spikeprune.lab.train.device import repeatable
from spikeprune.lab.train.network import connect
from spikeprune.lab.train.pretrained import data_of
from spikeprune.lab.train.score import score
from spikeprune.zoo.pretrained import card

RESULTS = Path(__file__).parent / "results.jsonl"
FASHION, CIFAR = "fashion-small", "cifar10-vgg"
IMAGES = {FASHION: 2000, CIFAR: 1000}  # the first ones of a split are scored; with other numbers all is made anew
HELD_OUT = 1000  # the validation images of Fashion-MNIST

ARMS: dict[str, dict[str, Any]] = {
    "default": {},
    "default, cut only": {"solve": False},
    "plain energy": {"weighting": "none"},
    "magnitude": {"saliency": "magnitude", "allocate": "global", "solve": False},
    "LAMP": {"saliency": "magnitude", "allocate": "lamp", "solve": False},
    "Wanda": {"saliency": "wanda", "allocate": "neuron", "solve": False},
    "LAMP, plain solve": {"saliency": "magnitude", "allocate": "lamp", "weighting": "none"},
    "OBS, plain solve": {"saliency": "obs", "allocate": "lamp", "weighting": "none"},
    "random": {"saliency": "random", "allocate": "uniform", "solve": False},
}
VARIED: tuple[dict[str, Any], ...] = (
    {},
    {"weighting": "none"},
    {"solve": False},
    {"saliency": "magnitude", "solve": False},
    {"saliency": "energy"},
    {"saliency": "magnitude"},
    {"allocate": "energy"},
    {"allocate": "global"},
    {"rounds": 1},
    {"rounds": 4},
    {"rounds": 16},
    {"shift": True},
    {"eps": 0.1},
    {"eps": 0.005},
    {"ridge": 1e-1},
    {"ridge": 1e-3},
    {"images": 50},
    {"images": 500},
    {"power": 0.5},
    {"power": 2.0},
)


@final
@dataclasses.dataclass(frozen=True)
class Job:
    """One squeeze: which network, how far, which calibration images, which settings, and what it is scored on."""

    network: str
    sparsity: float
    draw: int
    settings: dict[str, Any]
    split: str
    images: int

    @property
    def key(self) -> str:
        """The same for the same job."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)


def jobs() -> Iterator[Job]:
    """All of them, the most important first. Draws 0 to 4 are published; 100 to 102 serve to choose settings."""

    def published(network: str, sparsity: float, draws: range, names: tuple[str, ...]) -> Iterator[Job]:
        for draw in draws:
            for name in names:
                yield Job(network, sparsity, draw, ARMS[name], "test", IMAGES[network])

    def choosing(draw: int) -> Iterator[Job]:
        for settings in VARIED:
            yield Job(FASHION, 0.95, draw, settings, "validation", HELD_OUT)

    pair, three = ("default", "plain energy"), ("default", "plain energy", "magnitude")
    yield from published(FASHION, 0.95, range(3), (*pair, "LAMP"))
    yield from published(FASHION, 0.95, range(3), ("default, cut only",))
    yield from published(FASHION, 0.95, range(1), tuple(ARMS))
    yield from published(FASHION, 0.95, range(5), pair)
    yield from choosing(100)
    yield from published(CIFAR, 0.95, range(1), three)
    yield from published(FASHION, 0.95, range(5), tuple(ARMS))
    yield from published(CIFAR, 0.95, range(3), three)
    yield from published(FASHION, 0.90, range(5), tuple(ARMS))
    yield from published(CIFAR, 0.90, range(3), three)
    yield from choosing(101)
    yield from published(FASHION, 0.98, range(5), tuple(ARMS))
    yield from choosing(102)


def calibration(data: Dataset, draw: int, images: int) -> list[torch.Tensor]:
    """The first `images` images of the training split, shuffled with the draw's number; no labels."""
    found: list[torch.Tensor] = []
    for x, _ in batches(data, "train", min(images, 100), shuffle=True, seed=draw):
        found.append(x)
        if sum(len(x) for x in found) >= images:
            break
    return found


def held_out(job: Job, data: Dataset) -> Dataset:
    """The data with the images that are scored in its test split."""
    chosen = data.validation if job.split == "validation" else data.test
    assert chosen is not None
    return dataclasses.replace(data, test=chosen.take(torch.arange(job.images)))


def accuracy(model: torch.nn.Module, network: str, data: Dataset) -> float:
    """On the data's test split."""
    found = card(network)
    example, _ = next(batches(data, "test", 8))
    return score(connect(model, example, found.T, found.classes, "auto", False), batches(data, "test", 250)).accuracy


def result_of(job: Job, data: Dataset) -> dict[str, Any]:
    """Squeezes and scores; the line of the file."""
    model, settings = sp.pretrained(job.network), dict(job.settings)
    images = calibration(data, job.draw, settings.get("images", 200))
    before = time.process_time()
    squeezed = sp.squeeze(model, images, job.sparsity, seed=job.draw, **settings)
    seconds = time.process_time() - before
    return {
        **dataclasses.asdict(job),
        "accuracy": accuracy(model, job.network, held_out(job, data)),
        "agreement": sum(squeezed.agreement.values()) / len(squeezed.agreement),
        "reached": squeezed.sparsity,
        "cpu_seconds": round(seconds, 2),
    }


def dense_of(job: Job, data: Dataset) -> dict[str, Any]:
    """The dense network on the same images, as a result of sparsity 0."""
    line = {**dataclasses.asdict(job), "sparsity": 0.0, "draw": -1, "settings": {}, "agreement": 1.0, "reached": 0.0}
    return {
        **line,
        "accuracy": accuracy(sp.pretrained(job.network), job.network, held_out(job, data)),
        "cpu_seconds": 0.0,
    }


def key_of(line: dict[str, Any]) -> str:
    """The key of the job that a line is the result of."""
    return Job(*(line[field.name] for field in dataclasses.fields(Job))).key


def read(path: Path = RESULTS) -> list[dict[str, Any]]:
    """All results so far."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, help="folder of the datasets, as for `spikeprune run`")
    parser.add_argument("--minutes", type=float, default=60.0, help="no squeeze is begun after this time")
    given = parser.parse_args()
    end, known, data = time.monotonic() + 60 * given.minutes, {key_of(line) for line in read()}, dict[str, Dataset]()
    for job in jobs():
        dense = dataclasses.replace(job, sparsity=0.0, draw=-1, settings={})
        for wanted, make in ((dense, dense_of), (job, result_of)):
            if wanted.key in known:
                continue
            if time.monotonic() > end:
                return
            if job.network not in data:
                data[job.network] = data_of(job.network, given.root)
            with repeatable(threads=1):
                line = make(job, data[job.network])
            with RESULTS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            known.add(wanted.key)
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
