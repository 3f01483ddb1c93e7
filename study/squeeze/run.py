"""Squeezes trained networks with one setting after another: `python study/squeeze/run.py --root DATA --weights DIR`.

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
from safetensors.torch import load_file

import spikeprune as sp
from spikeprune.data import Dataset, batches
from spikeprune.lab.train.device import repeatable
from spikeprune.lab.train.network import connect
from spikeprune.lab.train.pretrained import data_of
from spikeprune.lab.train.score import score
from spikeprune.zoo.net import SpikingNet
from spikeprune.zoo.pretrained import Card, card

RESULTS = Path(__file__).parent / "results.jsonl"
FASHION, CIFAR, DIGITS, WIDE = "fashion-small", "cifar10-vgg", "digits", "digits-wide"
RESIDUAL, TRANSFORMER = "cifar10-resnet", "fashion-transformer"
SEEDS = (FASHION, *(f"{FASHION}-{seed}" for seed in range(1, 5)))  # five trainings of one recipe
# The first of the test split, which are scored.
IMAGES = {FASHION: 2000, TRANSFORMER: 2000, CIFAR: 1000, RESIDUAL: 1000, DIGITS: 355, WIDE: 355}
WHOLE = 10_000  # of Fashion-MNIST, for the goals
# Images of a draw, where the settings do not say.
CALIBRATION = {FASHION: 500, TRANSFORMER: 500, CIFAR: 500, RESIDUAL: 500, DIGITS: 100, WIDE: 100}
HELD_OUT = 1000  # the validation images of Fashion-MNIST

ARMS: dict[str, dict[str, Any]] = {
    "default": {},
    "polished": {"images": 5000, "polish": 2},
    "polished, 4 passes": {"images": 5000, "polish": 4},
    "plain energy": {"weighting": "none"},
    "default, cut only": {"solve": False},
    "OBS, plain solve": {"saliency": "obs", "weighting": "none"},
    "SBC": {"weighting": "membrane"},
    "LAMP, plain solve": {"saliency": "magnitude", "weighting": "none"},
    "LAMP": {"saliency": "magnitude", "solve": False},
    "magnitude": {"saliency": "magnitude", "allocate": "global", "solve": False},
    "Wanda": {"saliency": "wanda", "allocate": "neuron", "solve": False},
    "random": {"saliency": "random", "allocate": "uniform", "solve": False},
}
PAIR = ("default", "plain energy")
RIVALS = (*PAIR, "LAMP, plain solve", "LAMP", "magnitude", "Wanda", "OBS, plain solve", "SBC")
ROUNDS = (1, 8, 16)  # of cuts; 8 is the default
VARIED: tuple[dict[str, Any], ...] = (
    {},
    {"weighting": "none"},
    {"solve": False},
    {"images": 200},
    {"images": 1000},
    {"rows": 10_000},
    {"rounds": 1},
    {"rounds": 4},
    {"rounds": 16},
    {"ridge": 1e-1},
    {"ridge": 1e-3},
    {"power": 0.5},
    {"power": 2.0},
    {"eps": 0.1},
    {"saliency": "energy"},
    {"saliency": "magnitude"},
    {"saliency": "obs"},
    {"allocate": "energy"},
    {"allocate": "global"},
    {"shift": True},
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


def in_rounds(rounds: int, weighting: str = "criticality") -> dict[str, Any]:
    """Settings that say no more than they must, so that 8 rounds are the default's job."""
    told: dict[str, Any] = {} if rounds == 8 else {"rounds": rounds}
    return told if weighting == "criticality" else {**told, "weighting": weighting}


def recipe_of(network: str) -> str:
    """The recipe that trained a network, seeds aside."""
    return FASHION if network in SEEDS else network


def card_of(network: str) -> Card:
    """The card of the pretrained network that has its data and its number of time steps."""
    return card(DIGITS if network == WIDE else recipe_of(network))


def jobs() -> Iterator[Job]:
    """All of them, the most important first. Draws 0 to 4 are published; 100 to 102 serve to choose settings."""

    def published(
        networks: tuple[str, ...], sparsity: float, draws: range, names: tuple[str, ...], images: int | None = None
    ) -> Iterator[Job]:
        for draw in draws:
            for network in networks:
                for name in names:
                    number = images or IMAGES[recipe_of(network)]
                    yield Job(network, sparsity, draw, ARMS[name], "test", number)

    def choosing(network: str, draw: int, sparsity: float) -> Iterator[Job]:
        for settings in VARIED:
            yield Job(network, sparsity, draw, settings, "validation", HELD_OUT)

    short = (*PAIR, "LAMP", "magnitude")
    all_but_polished = tuple(name for name in ARMS if not name.startswith("polished"))
    for sparsity in (0.95, 0.90):
        yield from published(SEEDS, sparsity, range(1), ("default",), WHOLE)
    yield from published(SEEDS, 0.90, range(1), ("polished, 4 passes",), WHOLE)
    for sparsity in (0.95, 0.90):
        yield from published(SEEDS, sparsity, range(1), ("polished",), WHOLE)
        yield from published((DIGITS,), sparsity, range(5), (*all_but_polished, "polished"))
        yield from published(SEEDS, sparsity, range(1), RIVALS)
    for rounds in ROUNDS:
        for weighting in ("criticality", "none"):
            for network in SEEDS:
                yield Job(network, 0.95, 0, in_rounds(rounds, weighting), "test", IMAGES[FASHION])
    for sparsity in (0.95, 0.90):
        yield from published((CIFAR, RESIDUAL), sparsity, range(1), (*PAIR, "magnitude", "polished"))
        yield from published((WIDE,), sparsity, range(5), all_but_polished)
    for sparsity in (0.95, 0.90):
        yield from published((CIFAR,), sparsity, range(3), ("polished",))
        yield from published((CIFAR, RESIDUAL), sparsity, range(5), short)
    yield from published((TRANSFORMER,), 0.90, range(3), short)
    for sparsity in (0.98, 0.80):
        yield from published((CIFAR, RESIDUAL), sparsity, range(5), short)
    yield from published((TRANSFORMER,), 0.80, range(3), short)
    for sparsity in (0.98, 0.80):
        yield from published((WIDE, DIGITS), sparsity, range(5), all_but_polished)
        yield from published(SEEDS, sparsity, range(1), short)
    for seed in (3, 4):
        yield from choosing(SEEDS[seed], 100, 0.95)
    for sparsity in (0.95, 0.90, 0.98, 0.80):
        yield from published(SEEDS, sparsity, range(5), RIVALS)
        yield from published((CIFAR, RESIDUAL), sparsity, range(5), all_but_polished)


def trained(network: str, folder: Path | None) -> SpikingNet:
    """The network, in eval mode: one of `sp.pretrained`, or a further seed from a folder that train.py wrote."""
    if network not in (*SEEDS[1:], WIDE):
        return sp.pretrained(network)
    found = sorted(folder.rglob(f"{network}.safetensors")) if folder is not None else []
    if not found:
        name, seed = (WIDE, 0) if network == WIDE else (FASHION, network[-1])
        raise SystemExit(
            f"no {network}.safetensors under --weights {folder}; make it with "
            f"`python study/pretrained/train.py {name} --seed {seed} --out DIR`"
        )
    known = card_of(network)
    model = sp.model("digits-conv-wide", known.classes, T=known.T, size=known.size) if network == WIDE else None
    model = sp.pretrained(FASHION) if model is None else model
    model.load_state_dict({n: v.float() if v.is_floating_point() else v for n, v in load_file(found[0]).items()})
    return model.eval()


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
    found = card_of(network)
    example, _ = next(batches(data, "test", 8))
    return score(connect(model, example, found.T, found.classes, "auto", False), batches(data, "test", 250)).accuracy


def result_of(job: Job, data: Dataset, weights: Path | None) -> dict[str, Any]:
    """Squeezes and scores; the line of the file."""
    model, settings = trained(job.network, weights), dict(job.settings)
    settings.setdefault("images", CALIBRATION[recipe_of(job.network)])
    images = calibration(data, job.draw, settings["images"])
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


def dense_of(job: Job, data: Dataset, weights: Path | None) -> dict[str, Any]:
    """The dense network on the same images, as a result of sparsity 0."""
    line = {**dataclasses.asdict(job), "sparsity": 0.0, "draw": -1, "settings": {}, "agreement": 1.0, "reached": 0.0}
    return {
        **line,
        "accuracy": accuracy(trained(job.network, weights), job.network, held_out(job, data)),
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
    parser.add_argument("--weights", type=Path, help="folder of the weights of seeds 1 to 4, made by train.py")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the file that is read and appended to")
    parser.add_argument("--minutes", type=float, default=60.0, help="no squeeze is begun after this time")
    parser.add_argument("--networks", nargs="+", help="only these, such as fashion-small digits")
    given = parser.parse_args()
    end, known, data = (
        time.monotonic() + 60 * given.minutes,
        {key_of(line) for line in read(given.results)},
        dict[str, Dataset](),
    )
    for job in jobs():
        if given.networks and recipe_of(job.network) not in given.networks:
            continue
        dense = dataclasses.replace(job, sparsity=0.0, draw=-1, settings={})
        for wanted, make in ((dense, dense_of), (job, result_of)):
            if wanted.key in known:
                continue
            if time.monotonic() > end:
                return
            recipe = recipe_of(job.network)
            if recipe not in data:
                data[recipe] = data_of(card_of(job.network).name, given.root)
            with repeatable(threads=1):
                line = make(job, data[recipe], given.weights)
            with given.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            known.add(wanted.key)
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
