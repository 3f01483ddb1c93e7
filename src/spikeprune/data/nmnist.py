"""`nmnist`: the digits of MNIST seen by an event camera, as recordings of 34x34 pixels and two polarities."""

import re
import string
from pathlib import Path

import numpy as np
import torch

from spikeprune.data.dataset import Source, Split
from spikeprune.data.formats.events import frames_of
from spikeprune.data.formats.files import Tree, below, missing, open_tree
from spikeprune.data.registry import Facts, Request, register

_SIDE = 34
_RECORDING = re.compile(r"(?:^|/)(Train|Test)/([0-9])/[^/]+\.bin$")


@register(
    "nmnist",
    facts=Facts((2, _SIDE, _SIDE), 10, 60_000, 10_000, tuple(string.digits), time_first=True),
    cite="Orchard et al. 2015, Frontiers in Neuroscience 9:437",
    license="CC BY-SA 4.0",
    home="https://www.garrickorchard.com/datasets/n-mnist",
)
def read(request: Request) -> Source:
    """Recordings `Train/<digit>/*.bin` and `Test/<digit>/*.bin` as frames [T, N, 2, 34, 34] that count events.

    Read from a folder `NMNIST` (or `root` itself), a packed `NMNIST*.tar.*`, or `Train.zip` and `Test.zip`.
    Counts are used as they are (scale 1, mean 0, std 1), so that a pixel without an event stays 0.

    Raises: MissingFile; InvalidValue for a damaged recording.
    """
    root, T, facts = request.root, request.T, request.facts
    found: dict[str, list[tuple[Tree, str, int]]] = {"Train": [], "Test": []}
    for tree in _trees(root):
        for name in tree.files:
            if match := _RECORDING.search(name):
                found[match[1]].append((tree, name, int(match[2])))
    for part, recordings in found.items():
        if not recordings:
            raise missing("nmnist", f"NMNIST/{part}/<digit>/*.bin", root, get_it="pass --data.root DIR")

    def split(recordings: list[tuple[Tree, str, int]]) -> Split:
        frames = np.zeros((T, len(recordings), 2, _SIDE, _SIDE), np.uint8)
        for n, (tree, name, _) in enumerate(recordings):
            frames[:, n] = frames_of(tree.read(name), T, _SIDE, tree.path / name)
        labels = torch.tensor([label for _, _, label in recordings], dtype=torch.int64)
        return Split(torch.from_numpy(frames), labels, time_first=True)

    train, test = split(found["Train"]), split(found["Test"])
    return Source(
        train, test, facts.names, scale=1.0, mean=(0.0,), std=(1.0,), notes=facts.absent(len(train), len(test))
    )


def _trees(root: Path) -> list[Tree]:
    for place in below(root, ("NMNIST", "N-MNIST", "nmnist", "events/NMNIST", "events")):
        if (place / "Train").is_dir():
            return [open_tree(place)]
        if (place / "Train.zip").is_file() and (place / "Test.zip").is_file():
            return [open_tree(place / "Train.zip"), open_tree(place / "Test.zip")]
        if packed := sorted(place.glob("NMNIST*.tar*")):
            return [open_tree(packed[0])]
    raise missing(
        "nmnist", "NMNIST/Train or NMNIST*.tar.xz", root, get_it="pass --data.root DIR or set SPIKEPRUNE_DATA"
    )
