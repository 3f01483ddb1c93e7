"""`mnist` and `fashion-mnist`: four files in idx format, packed (.gz) or unpacked.

An idx file is a big-endian header (two zero bytes, a type code, the number of dimensions, each dimension as 32 bits)
and the values. Source: Y. LeCun, C. Cortes, C. Burges, "The MNIST database".
"""

import gzip
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from spikeprune.data.dataset import Source, Split, check_labels
from spikeprune.data.facts import FACTS
from spikeprune.data.files import below, damaged, md5, missing, named, short

_FOLDERS = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}
_UNSIGNED_BYTE = 0x08
# md5 of the published .gz file and of its content
_PUBLISHED = {
    "mnist": {
        "train-images-idx3-ubyte": ("f68b3c2dcbeaaa9fbdd348bbdeb94873", "6bbc9ace898e44ae57da46a324031adb"),
        "train-labels-idx1-ubyte": ("d53e105ee54ea40749a09fcbcd1e9432", "a25bea736e30d166cdddb491f175f624"),
        "t10k-images-idx3-ubyte": ("9fb629c4189551a2d022fa330f9573f3", "2646ac647ad5339dbf082846283269ea"),
        "t10k-labels-idx1-ubyte": ("ec29112dd5afa0611ce80d1b7f02629c", "27ae3e4e09519cfbb04c329615203637"),
    },
    "fashion-mnist": {
        "train-images-idx3-ubyte": ("8d4fb7e6c68d591d4c3dfef9ec88bf0d", "f4a8712d7a061bf5bd6d2ca38dc4d50a"),
        "train-labels-idx1-ubyte": ("25c81989df183df01b3e8a0aad5dffbe", "9018921c3c673c538a1fc5bad174d6f9"),
        "t10k-images-idx3-ubyte": ("bef4ecab320f06d8554ea6380940ec79", "8181f5470baa50b63fa0f6fddb340f0a"),
        "t10k-labels-idx1-ubyte": ("bb300cfdad3c16e7a12a480ee83cd310", "15d484375f8d13e6eb1aabb0c3f46965"),
    },
}


def read_idx_dataset(name: str, root: Path) -> Source:
    """`mnist` or `fashion-mnist` below `root`: `FashionMNIST/raw/*`, `raw/*` or the files themselves.

    Raises: MissingFile; InvalidValue for a damaged file, and for the files of the other dataset.
    """
    facts = FACTS[name]
    folder = _FOLDERS[name]
    places = below(root, (f"{folder}/raw", folder, name, "raw"))
    sums: list[bool] = []

    def read(file: str, dims: int) -> tuple[Tensor, Path]:
        path = _find(name, file, root, places)
        content = path.read_bytes()
        found = md5(content)
        for other, files in _PUBLISHED.items():
            if other != name and found in files[file]:
                raise damaged(path, f"it is the {other} file, not that of {name}")
        sums.append(found in _PUBLISHED[name][file])
        return _parse(path, content, dims), path

    def split(prefix: str) -> Split:
        images, image_path = read(f"{prefix}-images-idx3-ubyte", 3)
        labels, label_path = read(f"{prefix}-labels-idx1-ubyte", 1)
        if len(images) != len(labels):
            raise damaged(label_path, f"{len(labels)} labels for the {len(images)} images of {image_path.name}")
        if images.shape[1:] != facts.shape[1:]:
            raise damaged(image_path, f"images of {images.shape[1]}x{images.shape[2]}, not 28x28")
        labels = labels.long()
        check_labels(labels, facts.classes, short(label_path))
        return Split(images[:, None], labels)

    train, test = split("train"), split("t10k")
    return Source(train, test, facts.names, published=all(sums), notes=facts.absent(len(train), len(test)))


def _find(name: str, file: str, root: Path, places: list[Path]) -> Path:
    """The file in the first place that holds it, under any of the spellings in use, unpacked before packed."""
    spellings = [spelling + suffix for spelling in (file, file.replace("-idx", ".idx")) for suffix in ("", ".gz")]
    for place in places:
        for spelling in spellings:
            if (place / spelling).is_file():
                return place / spelling
    raise missing(name, f"{file}[.gz]", root, places)


def _parse(path: Path, content: bytes, dims: int) -> Tensor:
    """The uint8 tensor of an idx file, its header checked against its size."""
    if path.suffix == ".gz":
        with named(path):
            content = gzip.decompress(content)
    start = 4 + 4 * dims
    if len(content) < start or content[:4] != bytes((0, 0, _UNSIGNED_BYTE, dims)):
        raise damaged(path, f"no idx header of {dims} dimensions of bytes")
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", dims, offset=4))
    if len(content) != start + math.prod(shape):
        raise damaged(path, f"{len(content):,} bytes where its header promises {start + math.prod(shape):,}")
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy())
