"""`cifar10-dvs`: 10,000 images of CIFAR-10 moved before an event camera of 128x128 pixels."""

import re
from pathlib import Path

import numpy as np
import torch

from spikeprune.data.dataset import Source, Split
from spikeprune.data.formats.aedat import read_aedat2
from spikeprune.data.formats.events import gather
from spikeprune.data.formats.files import Tree, below, missing, open_tree
from spikeprune.data.registry import Facts, Request, register

_SIDE = 128
_EACH = 1_000
_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_RECORDING = re.compile(r"cifar10_([a-z]+)_(\d+)\.aedat$")


@register(
    "cifar10-dvs",
    facts=Facts((2, _SIDE, _SIDE), 10, 9_000, 1_000, _NAMES, time_first=True),
    cite="Li et al. 2017, Frontiers in Neuroscience 11:309",
    license="CC BY 4.0",
    home="https://figshare.com/articles/dataset/CIFAR10-DVS_New/4724671",
)
def read(request: Request) -> Source:
    """Recordings `cifar10_<class>_<number>.aedat` in a folder or a `<class>.zip` for each class.

    Frames [T, N, 2, 128, 128] count events, and are used as they are. The data has no split of its own: of each class
    the recordings with numbers 0 to 899 are for training and 900 to 999 for testing, as most papers take nine tenths.
    The reader was tested on small files in this layout, not on the published ones.

    Raises: MissingFile; InvalidValue for a damaged recording.
    """
    found: dict[bool, list[tuple[Tree, str, int]]] = {True: [], False: []}
    for tree in _trees(request.root):
        for name in tree.files:
            match = _RECORDING.search(name)
            if match and match[1] in _NAMES:
                found[int(match[2]) < 0.9 * _EACH].append((tree, name, _NAMES.index(match[1])))
    if not found[True] or not found[False]:
        part = "numbers below 900" if not found[True] else "numbers from 900 on"
        raise missing("cifar10-dvs", f"cifar10_<class>_<number>.aedat with {part}", request.root, get_it=_GET_IT)
    train, test = (_split(found[part], request.T) for part in (True, False))
    notes = request.facts.absent(len(train), len(test))
    return Source(train, test, _NAMES, scale=1.0, mean=(0.0,), std=(1.0,), notes=notes)


_GET_IT = "pass --data.root DIR or set SPIKEPRUNE_DATA"


def _trees(root: Path) -> list[Tree]:
    for place in below(root, ("CIFAR10DVS", "CIFAR10-DVS", "cifar10-dvs", "events/CIFAR10DVS")):
        if any((place / name).is_dir() for name in _NAMES):
            return [open_tree(place)]
        if packed := [place / f"{name}.zip" for name in _NAMES if (place / f"{name}.zip").is_file()]:
            return [open_tree(path) for path in packed]
    raise missing("cifar10-dvs", "CIFAR10DVS/<class>/*.aedat or <class>.zip", root, get_it=_GET_IT)


def _split(recordings: list[tuple[Tree, str, int]], T: int) -> Split:
    frames = np.zeros((T, len(recordings), 2, _SIDE, _SIDE), np.uint8)
    for n, (tree, name, _) in enumerate(recordings):
        path = tree.path / name
        events = read_aedat2(tree.read(name), path)
        frames[:, n] = gather(events.x, events.y, events.p, T, _SIDE, path, clip=True)
    labels = torch.tensor([label for _, _, label in recordings], dtype=torch.int64)
    return Split(torch.from_numpy(frames), labels, time_first=True)
