"""Four files in idx format, packed (.gz) or unpacked: images and labels of the training and of the test split.

An idx file is a big-endian header (two zero bytes, a type code, the number of dimensions, each dimension as 32 bits)
and the values. Source: Y. LeCun, C. Cortes, C. Burges, "The MNIST database".
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from spikeprune.core.errors import InvalidValue
from spikeprune.data.dataset import Source, Split, check_labels
from spikeprune.data.formats.files import all_published, below, damaged, md5, missing, short, ungzipped
from spikeprune.data.registry import Request, other_owner

_UNSIGNED_BYTE = 0x08
_LARGEST = 1 << 32  # bytes of one file; those of MNIST have 47 million


def read_idx(request: Request, folders: Sequence[str]) -> Source:
    """The files below `root`: `<folder>/raw/*`, `<folder>/*`, `<name>/*`, `raw/*` or the files themselves.

    Args:
        folders: names of the dataset's folder, such as `FashionMNIST`.
    Raises: MissingFile; InvalidValue for a damaged file, and for one whose md5 sum belongs to another dataset.
    """
    root = request.root
    inside = [place for folder in folders for place in (f"{folder}/raw", folder)]
    places = below(root, (*inside, request.name, "raw"))
    sums: list[bool | None] = []

    def read(file: str, dims: int) -> tuple[Tensor, Path]:
        path = _find(request.name, file, root, places)
        content = path.read_bytes()
        found = md5(content)
        if (owner := other_owner(request.known, found)) is not None:
            raise InvalidValue(
                f"{short(path)} is a file of {owner}, not of {request.name}; pass the folder that holds {request.name} "
                f"as --data.root, or --data.name {owner}"
            )
        sums.append(request.published(file + ".gz" * (path.suffix == ".gz"), found))
        return _parse(path, content, dims), path

    train = _split(request, read, "train")
    test = _split(request, read, "t10k")
    facts = request.facts
    return Source(train, test, facts.labels, published=all_published(sums), notes=facts.absent(len(train), len(test)))


def _split(request: Request, read: Callable[[str, int], tuple[Tensor, Path]], prefix: str) -> Split:
    facts = request.facts
    images, image_path = read(f"{prefix}-images-idx3-ubyte", 3)
    labels, label_path = read(f"{prefix}-labels-idx1-ubyte", 1)
    if len(images) != len(labels):
        raise damaged(label_path, f"{len(labels)} labels for the {len(images)} images of {image_path.name}")
    height, width = images.shape[1:]
    if (height, width) != facts.image[1:]:
        raise InvalidValue(
            f"{short(image_path)} holds images of {height}x{width}, not {facts.image[1]}x{facts.image[2]} as "
            f"{request.name} is registered; the file is of other data, or the registration is wrong"
        )
    labels = labels.long()
    check_labels(labels, facts.classes, f"{short(label_path)} ({request.name}: {facts.classes} classes)")
    return Split(images[:, None], labels)


def _find(name: str, file: str, root: Path, places: list[Path]) -> Path:
    """The file in the first place that holds it, under any of the spellings in use, unpacked before packed."""
    spellings = [spelling + suffix for spelling in (file, file.replace("-idx", ".idx")) for suffix in ("", ".gz")]
    for place in places:
        for spelling in spellings:
            if (place / spelling).is_file():
                return place / spelling
    raise missing(name, f"{file}[.gz]", root, places)


def _parse(path: Path, content: bytes, dims: int) -> Tensor:
    """The uint8 tensor of an idx file, its header checked before the rest is unpacked, and then against its size."""
    start, packed = 4 + 4 * dims, path.suffix == ".gz"
    head = ungzipped(path, content, start)[:start] if packed else content[:start]
    if len(head) < start or head[:4] != bytes((0, 0, _UNSIGNED_BYTE, dims)):
        raise damaged(path, f"no idx header of {dims} dimensions of bytes")
    shape = tuple(int(size) for size in np.frombuffer(head, ">u4", dims, offset=4))
    promised = start + math.prod(shape)
    if promised > _LARGEST:
        raise damaged(path, f"its header promises {promised:,} bytes, and no such file has {_LARGEST:,}")
    if packed:
        content = ungzipped(path, content, promised)
    if len(content) != promised:
        raise damaged(path, f"{len(content):,} bytes where its header promises {promised:,}")
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy())
