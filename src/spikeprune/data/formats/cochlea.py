"""Spikes of an artificial cochlea in HDF5 files, as the Heidelberg datasets SHD and SSC are published.

Source: Cramer et al. 2022, IEEE Transactions on Neural Networks and Learning Systems 33(7):2744
"""

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spikeprune.core.errors import MissingDependency
from spikeprune.data.dataset import Split
from spikeprune.data.formats.files import below, damaged, largest, missing, named, ungzipped

CHANNELS = 700
SECONDS = 1.4  # the longest recordings; later spikes fall into the last frame


def read_cochlea(dataset: str, file: str, root: Path, T: int, folders: tuple[str, ...]) -> Split:
    """Spike counts [T, N, 700, 1, 1] of `<file>.h5` or `<file>.h5.gz`.

    Frame t counts the spikes from SECONDS * t / T to SECONDS * (t + 1) / T; the last one counts all later spikes too.
    The file has `labels` [N], and of each recording `spikes/times` in seconds and `spikes/units` from 0 to 699.

    Raises: MissingDependency without h5py; MissingFile; InvalidValue for a damaged file.
    """
    try:
        import h5py
    except ImportError as error:
        raise MissingDependency(f"{dataset} needs h5py; try: pip install 'spikeprune[events]'") from error
    places = [place / f"{file}{end}" for place in below(root, folders) for end in (".h5", ".h5.gz")]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        get_it = "pass --data.root DIR or set SPIKEPRUNE_DATA"
        raise missing(dataset, f"{file}.h5 or {file}.h5.gz", root, places[:1], get_it)
    with named(path):
        source: Any = io.BytesIO(_unpacked(path)) if path.suffix == ".gz" else path
        with h5py.File(source, "r") as held:
            labels = np.asarray(held["labels"]).astype(np.int64)
            times: Any = held["spikes/times"]
            units: Any = held["spikes/units"]
            frames = np.zeros((T, len(labels), CHANNELS, 1, 1), np.uint8)
            for n in range(len(labels)):
                frames[:, n, :, 0, 0] = _counts(np.asarray(times[n]), np.asarray(units[n]), T, path)
    return Split(torch.from_numpy(frames), torch.from_numpy(labels), time_first=True)


def _unpacked(path: Path) -> bytes:
    packed = path.read_bytes()
    most = largest(len(packed))
    content = ungzipped(path, packed, most)
    if len(content) > most:
        raise damaged(path, f"{len(packed):,} bytes that unpack to more than {most:,}")
    return content


def _counts(times: np.ndarray, units: np.ndarray, T: int, path: Path) -> np.ndarray:
    if len(times) != len(units) or (len(units) and int(units.max()) >= CHANNELS):
        raise damaged(path, f"spikes of other channels than 0 to {CHANNELS - 1}, or without a time")
    frame = np.minimum((times.astype(np.float64) / SECONDS * T).astype(np.int64), T - 1)
    counts = np.bincount(frame * CHANNELS + units.astype(np.int64), minlength=T * CHANNELS)
    return counts.clip(max=255).astype(np.uint8).reshape(T, CHANNELS)
