"""CIFAR: the original Python batches (folder or .tar.gz), or lossless WebP sheets.

Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
"""

import io
import pickle
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch

from spikeprune.core.errors import InvalidValue
from spikeprune.data.dataset import Source, Split, check_labels
from spikeprune.data.formats.files import (
    Tree,
    all_published,
    below,
    damaged,
    md5,
    missing,
    named,
    open_tree,
    short,
)
from spikeprune.data.formats.images import pillow
from spikeprune.data.registry import Request

_SIDE = 32


@final
@dataclass(frozen=True)
class CifarLayout:
    """The files of CIFAR-10 or CIFAR-100. `batches` and `sheets` list training files first and the test file last.

    Args:
        folders: possible names of the folder of the dataset.
        batch_folder, archive: of the original batches.
        meta: the batch file that names the classes.
        labels_key, names_key: keys within a batch, and within `meta`.
        sheet_labels: key of the labels within `labels.npz`.
    """

    folders: tuple[str, ...]
    batch_folder: str
    archive: str
    batches: tuple[str, ...]
    meta: str
    labels_key: str
    names_key: str
    sheets: tuple[str, ...]
    sheet_labels: str


def read_cifar(request: Request, layout: CifarLayout) -> Source:
    """The first layout found below the root: batches, their archive, sheets.

    Raises: MissingFile; InvalidValue for a damaged file; MissingDependency if sheets need Pillow.
    """
    for place in below(request.root, layout.folders):
        if (place / layout.batch_folder).is_dir():
            return _from_batches(request, layout, open_tree(place / layout.batch_folder))
        if (place / layout.archive).is_file():
            return _from_batches(request, layout, open_tree(place / layout.archive).from_folder(layout.batch_folder))
        if any((place / f"{sheet}.webp").is_file() for sheet in layout.sheets):
            return _from_sheets(request, layout, place)
        if any((place / batch).is_file() for batch in layout.batches):
            return _from_batches(request, layout, open_tree(place))
    raise missing(request.name, f"{layout.batch_folder}/, {layout.archive} or {layout.sheets[-1]}.webp", request.root)


def _from_batches(request: Request, layout: CifarLayout, tree: Tree) -> Source:
    facts = request.facts
    images: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    sums: list[bool | None] = []
    for batch in layout.batches:
        x, y, found = _batch(request, layout, tree, batch)
        images.append(x)
        labels.append(y)
        sums.append(request.published(batch, found))
    names = facts.labels
    if layout.meta in tree.files:
        with named(tree.path / layout.meta):
            meta = load_plain_pickle(tree.read(layout.meta))
            names = tuple(_text(label) for label in meta[layout.names_key.encode()])
    if len(names) != facts.classes:
        raise damaged(tree.path / layout.meta, f"{len(names)} class names, not {facts.classes}")
    train, test = _split(images[:-1], labels[:-1]), _split(images[-1:], labels[-1:])
    return Source(train, test, names, published=all_published(sums), notes=facts.absent(len(train), len(test)))


def _batch(request: Request, layout: CifarLayout, tree: Tree, batch: str) -> tuple[np.ndarray, np.ndarray, str]:
    """Images [n, 3, 32, 32], labels [n] and the md5 of one batch file."""
    if batch not in tree.files:
        raise missing(request.name, batch, tree.path)
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
    check_labels(torch.from_numpy(y.astype(np.int64)), request.facts.classes, short(path))
    return x.reshape(-1, 3, _SIDE, _SIDE), y, md5(content)


def _from_sheets(request: Request, layout: CifarLayout, folder: Path) -> Source:
    """Sheets of 32x32 tiles, row by row, all of one size, and `labels.npz` with the labels of all sheets in order.

    Where `labels.npz` has `present`, the tiles that it marks False are absent and dropped.
    """
    facts = request.facts
    path = folder / "labels.npz"
    for file in (path, *(folder / f"{sheet}.webp" for sheet in layout.sheets)):
        if not file.is_file():
            raise missing(request.name, file.name, folder)
    with named(path), path.open("rb") as file, np.load(file, allow_pickle=False) as held:
        arrays = {key: held[key] for key in held.files}
    if layout.sheet_labels not in arrays:
        raise damaged(path, f"it holds {', '.join(sorted(arrays))}, but not {layout.sheet_labels}")
    labels = arrays[layout.sheet_labels]
    present = arrays.get("present", np.ones(len(labels), bool))
    per_sheet, rest = divmod(len(labels), len(layout.sheets))
    if labels.ndim != 1 or rest or present.shape != labels.shape or present.dtype != bool:
        raise damaged(path, f"{len(labels)} labels and {len(present)} marks for {len(layout.sheets)} sheets")
    check_labels(torch.from_numpy(labels.astype(np.int64)), request.facts.classes, short(path))
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
    """Stands in for `codecs.encode` while a pickle is read: text to bytes, with latin-1 only.

    Python 3 stores bytes in a pickle of protocol 2 as latin-1 text. Raises: InvalidValue for any other codec.
    """
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
