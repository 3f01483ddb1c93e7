"""The data of a network that comes trained, split as in its training, and its accuracy measured once more."""

import dataclasses
from pathlib import Path
from typing import final

import torch

from spikeprune.data import Dataset, batches, load
from spikeprune.lab.train.device import choose_device, repeatable
from spikeprune.lab.train.network import connect
from spikeprune.lab.train.score import score
from spikeprune.zoo.pretrained import card, pretrained

_BATCH = 250


@final
@dataclasses.dataclass(frozen=True)
class Scored:
    """Accuracy of a trained network now, beside the one on its card.

    Args:
        network: its name.
        accuracy, recorded: shares of the test images, measured now and written on the card.
        images: number of test images.
        same_data: whether pixels and labels are those that the card was written from.
    """

    network: str
    accuracy: float
    recorded: float
    images: int
    same_data: bool


def data_of(name: str, root: str | Path | None = None) -> Dataset:
    """The dataset of a trained network, with the splits of its training and the preprocessing on its card.

    `batches(data_of(name), "train", 200)` gives images for calibration that the network takes as they are.

    Args:
        root: as in `spikeprune.data.load`; not needed for `digits`.
    """
    found = card(name)
    data = load(found.data, root, T=found.T, validation=found.validation, seed=0)
    return dataclasses.replace(data, scale=found.scale, mean=found.mean, std=found.std)


def score_pretrained(name: str, root: str | Path | None = None, device: str = "cpu") -> Scored:
    """Accuracy of a trained network on the whole test split, with one thread, as it was measured for the card."""
    found, data = card(name), data_of(name, root)
    where = choose_device(device)
    model = pretrained(name).to(where)
    example, _ = next(batches(data, "test", 8, device=where))
    with repeatable(threads=1):
        network = connect(model, example, found.T, found.classes, "auto", data.time_first)
        result = score(network, batches(data, "test", _BATCH, device=torch.device(where)), data.time_first)
    return Scored(name, result.accuracy, found.accuracy, len(data.test), data.checksum == found.data_checksum)
