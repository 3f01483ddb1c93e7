"""`tiny-imagenet` and any `image-folder`: one folder of image files per class."""

from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import torch

from spikeprune.core.errors import InvalidValue
from spikeprune.data.dataset import Source, Split
from spikeprune.data.facts import FACTS
from spikeprune.data.files import Tree, below, damaged, missing, open_tree, short
from spikeprune.data.images import SUFFIXES, decode, survey

_TINY_FOLDERS = ("tiny-imagenet-200", "tiny-imagenet", "TinyImageNet", "tiny_imagenet")
_TINY_ARCHIVE = "tiny-imagenet-200.zip"


def read_tiny_imagenet(root: Path) -> Source:
    """Tiny-ImageNet in its original layout or re-foldered, unpacked or as the original .zip.

    Training images are `train/<wnid>/images/*` or `train/<wnid>/*`. The labelled `val` images are the test split:
    `val/images/*` with `val/val_annotations.txt`, or `val/<wnid>/` (as `train`). Classes are those of `wnids.txt`,
    or the folders of `train`; labels follow their alphabetical order in both. Part of the images is accepted.

    Raises: MissingFile; InvalidValue for a damaged image or an unknown class; MissingDependency without Pillow.
    Source: Y. Le and X. Yang, "Tiny ImageNet Visual Recognition Challenge", Stanford CS231N, 2015.
    """
    facts = FACTS["tiny-imagenet"]
    tree = _tiny_tree(root)
    train_of = _by_class(tree, "train")
    if not train_of:
        raise missing("tiny-imagenet", "train/<class>/images", tree.path)
    annotations = "val/val_annotations.txt"
    if annotations in tree.files and any(name.startswith("val/images/") for name in tree.files):
        test_of = _annotated(tree, annotations)
    else:
        test_of = _by_class(tree, "val")
    if not test_of:
        raise missing("tiny-imagenet", f"val/<class>/ or {annotations} with val/images", tree.path)
    listed = "wnids.txt" in tree.files
    classes = sorted(set(tree.read("wnids.txt").decode(errors="replace").split()) if listed else train_of)

    def split(files: Mapping[str, list[str]], folder: str) -> Split:
        names, labels = _pairs(files, classes, tree.path / folder, "wnids.txt" if listed else "train")
        return Split(decode(tree, names, facts.shape[1:], grey=False, resize=False), labels)

    train, test = split(train_of, "train"), split(test_of, "val")
    notes = facts.absent(len(train), len(test))
    if len(classes) != facts.classes:
        notes.append(f"{len(classes)} of {facts.classes} classes present")
    return Source(train, test, tuple(classes), notes=notes)


def read_image_folder(root: Path) -> Source:
    """`train/<class>/*` and `test/<class>/*` or `val/<class>/*`, at any depth below the class.

    With both, `val` is the validation split. Images of one size are taken as they are. Otherwise the largest centred
    square of each is scaled to the smallest side of any image, so that nothing is enlarged. All grey: one channel.

    Raises: MissingFile; InvalidValue for a damaged image or a class without training images; MissingDependency.
    """
    tree = open_tree(root)
    files = {part: _by_class(tree, part) for part in ("train", "test", "val")}
    if not files["train"]:
        raise missing("image-folder", "train/<class>/<image>", root, get_it="pass the folder that holds train/")
    held_out = files["val"] if files["test"] else {}
    test_of = files["test"] or files["val"]
    if not test_of:
        raise missing("image-folder", "test/<class>/<image> or val/", root, get_it="a test split is needed")
    classes = sorted(files["train"])
    every = [name for group in (files["train"], test_of, held_out) for names in group.values() for name in names]
    found, grey = survey(tree, every)
    side = min(min(size) for size in found)
    size = next(iter(found)) if len(found) == 1 else (side, side)
    notes = []
    if len(found) > 1:
        notes.append(f"images of {len(found)} sizes: centred square, bilinear to {side}x{side}")

    def split(group: Mapping[str, list[str]], folder: str) -> Split:
        names, labels = _pairs(group, classes, root / folder, "train")
        return Split(decode(tree, names, size, grey=grey, resize=len(found) > 1), labels)

    return Source(
        train=split(files["train"], "train"),
        test=split(test_of, "test" if files["test"] else "val"),
        validation=split(held_out, "val") if held_out else None,
        classes=tuple(classes),
        notes=notes,
    )


def _tiny_tree(root: Path) -> Tree:
    for place in below(root, _TINY_FOLDERS):
        if (place / "train").is_dir():
            return open_tree(place)
        if (place / _TINY_ARCHIVE).is_file():
            return open_tree(place / _TINY_ARCHIVE).from_folder("tiny-imagenet-200")
    get_it = "get it from cs231n.stanford.edu and pass --data.root DIR"
    raise missing("tiny-imagenet", f"{_TINY_FOLDERS[0]}/train or {_TINY_ARCHIVE}", root, get_it=get_it)


def _by_class(tree: Tree, folder: str) -> dict[str, list[str]]:
    """Class -> its image files below `folder/<class>/`, sorted."""
    found: dict[str, list[str]] = {}
    for name in tree.files:
        parts = PurePosixPath(name).parts
        if len(parts) >= 3 and parts[0] == folder and name.lower().endswith(SUFFIXES):
            found.setdefault(parts[1], []).append(name)
    return found


def _annotated(tree: Tree, annotations: str) -> dict[str, list[str]]:
    """Class -> image files, from lines `file <tab> class <tab> box`; images that are not there are left out."""
    found: dict[str, list[str]] = {}
    for number, line in enumerate(tree.read(annotations).decode(errors="replace").splitlines(), 1):
        columns = line.split()
        if len(columns) < 2:
            raise damaged(tree.path / annotations, f"line {number} names no class")
        if (name := f"val/images/{columns[0]}") in tree.files:
            found.setdefault(columns[1], []).append(name)
    return found


def _pairs(
    files: Mapping[str, list[str]], classes: list[str], folder: Path, listed_in: str
) -> tuple[list[str], torch.Tensor]:
    """File names and labels, class by class. Raises: InvalidValue for a class that is not in `classes`."""
    label_of = {name: label for label, name in enumerate(classes)}
    if stray := sorted(set(files) - set(label_of)):
        raise InvalidValue(
            f"{short(folder)} has images of class {stray[0]!r}, which {folder.parent.name}/{listed_in} lacks; "
            "every class needs training images, and wnids.txt, where there is one, lists them all"
        )
    names = [name for group in sorted(files) for name in files[group]]
    labels = [label_of[group] for group in sorted(files) for _ in files[group]]
    return names, torch.tensor(labels, dtype=torch.int64)
