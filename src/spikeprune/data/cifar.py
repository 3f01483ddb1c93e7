"""`cifar10` and `cifar100`: the original Python batches (folder or .tar.gz), or lossless WebP sheets.

Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
"""

import io
import pickle
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spikeprune.core.errors import InvalidValue
from spikeprune.data.dataset import Source, Split, check_labels
from spikeprune.data.facts import FACTS, Facts
from spikeprune.data.files import Tree, below, damaged, md5, missing, named, open_tree, short
from spikeprune.data.images import pillow

_SIDE = 32


@dataclass(frozen=True)
class _Layout:
    """Where one of the two sets keeps what. `batches` and `sheets` list training files first, the test file last."""

    folders: tuple[str, ...]
    batch_folder: str
    archive: str
    batches: Mapping[str, str]  # name -> published md5
    meta: str
    labels_key: str
    names_key: str
    sheets: tuple[str, ...]
    sheet_labels: str


_LAYOUTS = {
    "cifar10": _Layout(
        folders=("cifar10", "CIFAR10", "cifar-10"),
        batch_folder="cifar-10-batches-py",
        archive="cifar-10-python.tar.gz",
        batches={
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            "test_batch": "40351d587109b95175f43aff81a1287e",
        },
        meta="batches.meta",
        labels_key="labels",
        names_key="label_names",
        sheets=("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"),
        sheet_labels="labels",
    ),
    "cifar100": _Layout(
        folders=("cifar100", "CIFAR100", "cifar-100"),
        batch_folder="cifar-100-python",
        archive="cifar-100-python.tar.gz",
        batches={"train": "16019d7e3df5f24257cddd939b257f8d", "test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
        meta="meta",
        labels_key="fine_labels",
        names_key="fine_label_names",
        sheets=("train_1", "train_2", "train_3", "train_4", "train_5", "test"),
        sheet_labels="fine",
    ),
}


def read_cifar(name: str, root: Path) -> Source:
    """`cifar10` or `cifar100` below `root`, in the first layout found: batches, their archive, sheets.

    Raises: MissingFile; InvalidValue for a damaged file; MissingDependency if sheets need Pillow.
    """
    layout, facts = _LAYOUTS[name], FACTS[name]
    for place in below(root, layout.folders):
        if (place / layout.batch_folder).is_dir():
            return _from_batches(name, layout, facts, open_tree(place / layout.batch_folder))
        if (place / layout.archive).is_file():
            return _from_batches(
                name, layout, facts, open_tree(place / layout.archive).from_folder(layout.batch_folder)
            )
        if any((place / f"{sheet}.webp").is_file() for sheet in layout.sheets):
            return _from_sheets(name, layout, facts, place)
        if any((place / batch).is_file() for batch in layout.batches):
            return _from_batches(name, layout, facts, open_tree(place))
    raise missing(name, f"{layout.batch_folder}/, {layout.archive} or {layout.sheets[-1]}.webp", root)


def _from_batches(name: str, layout: _Layout, facts: Facts, tree: Tree) -> Source:
    images: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    published = True
    for batch, known in layout.batches.items():
        x, y, found = _batch(name, layout, facts, tree, batch)
        images.append(x)
        labels.append(y)
        published &= found == known
    names = facts.names
    if layout.meta in tree.files:
        with named(tree.path / layout.meta):
            meta = load_plain_pickle(tree.read(layout.meta))
            names = tuple(_text(label) for label in meta[layout.names_key.encode()])
    names = names or tuple(str(label) for label in range(facts.classes))
    if len(names) != facts.classes:
        raise damaged(tree.path / layout.meta, f"{len(names)} class names, not {facts.classes}")
    train, test = _split(images[:-1], labels[:-1]), _split(images[-1:], labels[-1:])
    return Source(train, test, names, published=published, notes=facts.absent(len(train), len(test)))


def _batch(name: str, layout: _Layout, facts: Facts, tree: Tree, batch: str) -> tuple[np.ndarray, np.ndarray, str]:
    """Images [n, 3, 32, 32], labels [n] and the md5 of one batch file."""
    if batch not in tree.files:
        raise missing(name, batch, tree.path)
    path = tree.path / batch
    content = tree.read(batch)
    with named(path):
        held = load_plain_pickle(content)
        x = held[b"data"] if b"data" in held else held["data"]
        key = layout.labels_key
        y = np.asarray(held[key.encode()] if key.encode() in held else held[key])
    if not isinstance(x, np.ndarray) or x.dtype != np.uint8 or x.ndim != 2 or x.shape[1] != 3 * _SIDE * _SIDE:
        raise damaged(path, f"its images are not bytes [n, {3 * _SIDE * _SIDE}]")
    if y.shape != (len(x),) or y.dtype.kind not in "iu":
        raise damaged(path, f"labels of shape {list(y.shape)} for {len(x)} images")
    check_labels(torch.from_numpy(y.astype(np.int64)), facts.classes, short(path))
    return x.reshape(-1, 3, _SIDE, _SIDE), y, md5(content)


def _from_sheets(name: str, layout: _Layout, facts: Facts, folder: Path) -> Source:
    """Sheets of 32x32 tiles, row by row, all of one size, and `labels.npz` with the labels of all sheets in order.

    Where `labels.npz` has `present`, the tiles that it marks False are absent and dropped.
    """
    path = folder / "labels.npz"
    for file in (path, *(folder / f"{sheet}.webp" for sheet in layout.sheets)):
        if not file.is_file():
            raise missing(name, file.name, folder)
    with named(path), path.open("rb") as file, np.load(file, allow_pickle=False) as held:
        arrays = {key: held[key] for key in held.files}
    if layout.sheet_labels not in arrays:
        raise damaged(path, f"it holds {', '.join(sorted(arrays))}, but not {layout.sheet_labels}")
    labels = arrays[layout.sheet_labels]
    present = arrays.get("present", np.ones(len(labels), bool))
    per_sheet, rest = divmod(len(labels), len(layout.sheets))
    if labels.ndim != 1 or rest or present.shape != labels.shape or present.dtype != bool:
        raise damaged(path, f"{len(labels)} labels and {len(present)} marks for {len(layout.sheets)} sheets")
    check_labels(torch.from_numpy(labels.astype(np.int64)), facts.classes, short(path))
    pillow()  # before the threads, so that its absence is told once
    with ThreadPoolExecutor() as pool:  # Pillow decodes outside the interpreter lock
        sheets = list(pool.map(lambda sheet: _tiles(folder / f"{sheet}.webp", per_sheet), layout.sheets))
    keep = present.reshape(len(sheets), per_sheet)
    images = [sheet[kept] for sheet, kept in zip(sheets, keep, strict=True)]
    kept_labels = [y[kept] for y, kept in zip(labels.reshape(keep.shape), keep, strict=True)]
    train, test = _split(images[:-1], kept_labels[:-1]), _split(images[-1:], kept_labels[-1:])
    stored = arrays.get("fine_names")
    names = facts.names or tuple(str(label) for label in (range(facts.classes) if stored is None else stored))
    return Source(train, test, names, notes=facts.absent(len(train), len(test)))


def _tiles(path: Path, count: int) -> np.ndarray:
    """The tiles [count, 3, 32, 32] of one sheet."""
    with named(path), pillow().open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    rows, columns = pixels.shape[0] // _SIDE, pixels.shape[1] // _SIDE
    if pixels.shape[:2] != (rows * _SIDE, columns * _SIDE) or rows * columns != count:
        raise damaged(path, f"{pixels.shape[1]}x{pixels.shape[0]} pixels do not hold {count} tiles of 32x32")
    tiles = pixels.reshape(rows, _SIDE, columns, _SIDE, 3).transpose(0, 2, 4, 1, 3)
    return tiles.reshape(count, 3, _SIDE, _SIDE)


def _split(images: list[np.ndarray], labels: list[np.ndarray]) -> Split:
    x = torch.from_numpy(np.ascontiguousarray(np.concatenate(images)))
    return Split(x, torch.from_numpy(np.concatenate(labels).astype(np.int64)))


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name


def load_plain_pickle(content: bytes) -> dict[Any, Any]:
    """A pickled dict of plain values and NumPy arrays; nothing else can be constructed or called by it.

    The batches are pickles of Python 2, so text arrives as bytes.
    Raises: InvalidValue if the file asks for any other object.
    """
    held = _PlainUnpickler(io.BytesIO(content), encoding="bytes").load()
    if not isinstance(held, dict):
        raise InvalidValue(f"expected a pickled dict of arrays, got {type(held).__name__}; fetch the file again")
    return held


def _bytes_of_latin1(text: str, encoding: str) -> bytes:
    """Python 3 writes bytes in a protocol-2 pickle as text to encode; no other codec is needed, or safe to offer."""
    if encoding != "latin1":
        raise InvalidValue(f"a pickled array is encoded as {encoding!r}, not latin1; fetch the file again")
    return text.encode("latin1")


class _PlainUnpickler(pickle.Unpickler):
    """Knows the constructors of a NumPy array, by their old and new addresses, and no others."""

    _allowed: Mapping[tuple[str, str], Any] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("numpy.core.multiarray", "_reconstruct"): np.zeros(0).__reduce__()[0],
        ("numpy._core.multiarray", "_reconstruct"): np.zeros(0).__reduce__()[0],
        ("_codecs", "encode"): _bytes_of_latin1,
    }

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        try:
            return self._allowed[module_name, global_name]
        except KeyError:
            raise InvalidValue(
                f"a data file asks to load {module_name}.{global_name}, which no CIFAR batch needs; do not trust it"
            ) from None
