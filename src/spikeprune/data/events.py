"""`nmnist`: event recordings, gathered into frames.

Source: Orchard et al. 2015, "Converting Static Image Datasets to Spiking Neuromorphic Datasets Using Saccades",
Frontiers in Neuroscience 9:437; frames as in SpikingJelly's `integrate_events_by_fixed_frames_number`.
"""

import re
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8

from spikeprune.data.dataset import Source, Split
from spikeprune.data.facts import FACTS
from spikeprune.data.files import Tree, below, damaged, missing, open_tree

_SIDE = 34
_OVERFLOW_ROW = 240  # such an entry marks an overflow of the clock and is no event
_RECORDING = re.compile(r"(?:^|/)(Train|Test)/([0-9])/[^/]+\.bin$")


def read_nmnist(root: Path, T: int) -> Source:
    """Recordings `Train/<digit>/*.bin` and `Test/<digit>/*.bin` as frames [T, N, 2, 34, 34] that count events.

    Read from a folder `NMNIST` (or `root` itself), a packed `NMNIST*.tar.*`, or `Train.zip` and `Test.zip`.
    Counts are used as they are (scale 1, mean 0, std 1), so that a pixel without an event stays 0.

    Raises: MissingFile; InvalidValue for a damaged recording.
    """
    facts = FACTS["nmnist"]
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
            frames[:, n] = frames_of(tree.read(name), T, tree.path / name)
        labels = torch.tensor([label for _, _, label in recordings], dtype=torch.int64)
        return Split(torch.from_numpy(frames), labels, time_first=True)

    train, test = split(found["Train"]), split(found["Test"])
    return Source(
        train, test, facts.names, scale=1.0, mean=(0.0,), std=(1.0,), notes=facts.absent(len(train), len(test))
    )


def frames_of(content: bytes, T: int, path: Path) -> UInt8[np.ndarray, "T 2 34 34"]:
    """Events per polarity and pixel in T frames of equally many events; the last frame takes the remainder.

    With M events in order of time, event i belongs to frame min(i // (M // T), T - 1). An entry has five bytes: x, y,
    one bit polarity and 23 bits time in microseconds.

    Args:
        content: the recording's bytes.
        path: for the message of an error.
    """
    if not content or len(content) % 5:
        raise damaged(path, f"{len(content)} bytes, not a whole number of 5-byte events")
    entries = np.frombuffer(content, np.uint8).reshape(-1, 5).astype(np.int64)
    entries = entries[entries[:, 1] != _OVERFLOW_ROW]
    x, y, polarity = entries[:, 0], entries[:, 1], entries[:, 2] >> 7
    if len(entries) < T or max(x.max(), y.max()) >= _SIDE:
        raise damaged(path, f"fewer than T = {T} events, or events outside {_SIDE}x{_SIDE} pixels")
    frame = np.minimum(np.arange(len(entries)) // (len(entries) // T), T - 1)
    where = ((frame * 2 + polarity) * _SIDE + y) * _SIDE + x
    counts = np.bincount(where, minlength=T * 2 * _SIDE * _SIDE)
    if counts.max() > 255:
        raise damaged(path, f"{counts.max()} events in one pixel of one frame, more than 255; try a larger T")
    return counts.astype(np.uint8).reshape(T, 2, _SIDE, _SIDE)


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
