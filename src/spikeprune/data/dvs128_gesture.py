"""`dvs128-gesture`: eleven hand and arm gestures of 29 people, seen by an event camera of 128x128 pixels."""

import re
from pathlib import Path

import numpy as np
import torch

from spikeprune.data.dataset import Source, Split
from spikeprune.data.formats.aedat import read_aedat3
from spikeprune.data.formats.events import gather
from spikeprune.data.formats.files import Tree, below, damaged, missing, named, open_tree
from spikeprune.data.registry import Facts, Request, register

_SIDE = 128
_FOLDERS = ("DvsGesture", "DVS128Gesture", "events/DvsGesture", "events")
_NAMES = (
    "hand clapping", "right hand wave", "left hand wave", "right arm clockwise", "right arm counter clockwise",
    "left arm clockwise", "left arm counter clockwise", "arm roll", "air drums", "air guitar", "other gestures",
)  # fmt: skip


@register(
    "dvs128-gesture",
    # 11 and not len(_NAMES): `spikeprune list` reads this text.
    facts=Facts((2, _SIDE, _SIDE), 11, 1_176, 288, _NAMES, time_first=True),
    cite="Amir et al. 2017, CVPR, A Low Power, Fully Event-Based Gesture Recognition System",
    license="CC BY 4.0",
    home="https://research.ibm.com/interactive/dvsgesture/",
)
def read(request: Request) -> Source:
    """Recordings `user*_*.aedat` with `*_labels.csv`, split as `trials_to_train.txt` and `trials_to_test.txt` say.

    Read from a folder `DvsGesture` or from `DvsGesture.tar.gz`; frames [T, N, 2, 128, 128] count events, and are used
    as they are. Each line of a labels file is a sample: class from 1 on, its first and its last microsecond. The
    reader was tested on small files in this layout, not on the published ones.

    Raises: MissingFile; InvalidValue for a damaged file.
    """
    tree = _tree(request.root)
    train, test = (_split(tree, f"trials_to_{part}.txt", request) for part in ("train", "test"))
    notes = request.facts.absent(len(train), len(test))
    return Source(train, test, _NAMES, scale=1.0, mean=(0.0,), std=(1.0,), notes=notes)


def _tree(root: Path) -> Tree:
    for place in below(root, _FOLDERS):
        if (place / "trials_to_train.txt").is_file():
            return open_tree(place)
        if packed := sorted(place.glob("DvsGesture*.tar*")):
            return open_tree(packed[0]).from_folder("DvsGesture")
    get_it = "pass --data.root DIR or set SPIKEPRUNE_DATA"
    raise missing("dvs128-gesture", "DvsGesture/trials_to_train.txt or DvsGesture.tar.gz", root, get_it=get_it)


def _split(tree: Tree, trials: str, request: Request) -> Split:
    frames: list[np.ndarray] = []
    labels: list[int] = []
    if trials not in tree.files:
        raise missing("dvs128-gesture", trials, tree.path, get_it="unpack the published archive again")
    for recording in tree.read(trials).decode("ascii", "replace").split():
        events = read_aedat3(tree.read(_there(tree, recording)), tree.path / recording)
        table = _there(tree, recording.removesuffix(".aedat") + "_labels.csv")
        for label, start, end in _rows(tree.read(table), tree.path / table):
            part = events.between(start, end)
            frames.append(gather(part.x, part.y, part.p, request.T, _SIDE, tree.path / recording, clip=True))
            labels.append(label - 1)
    if not frames:
        raise damaged(tree.path / trials, "it names no recording with a sample")
    return Split(torch.from_numpy(np.stack(frames, 1)), torch.tensor(labels, dtype=torch.int64), time_first=True)


def _there(tree: Tree, name: str) -> str:
    if name not in tree.files:
        raise missing("dvs128-gesture", name, tree.path, get_it="unpack the published archive again")
    return name


def _rows(content: bytes, path: Path) -> list[tuple[int, int, int]]:
    """The samples of a labels file: class, start and end in microseconds."""
    rows: list[tuple[int, int, int]] = []
    with named(path):
        for line in content.decode("ascii").splitlines()[1:]:
            if line.strip():
                label, start, end = (int(float(v)) for v in re.split(r"[,;\s]+", line.strip())[:3])
                if not 1 <= label <= len(_NAMES):
                    raise damaged(path, f"class {label}, not 1 to {len(_NAMES)}")
                rows.append((label, start, end))
    return rows
