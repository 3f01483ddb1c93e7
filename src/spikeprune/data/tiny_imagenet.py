"""`tiny-imagenet`: photographs of 64x64 pixels in 200 classes, one folder of image files per class."""

from collections.abc import Mapping
from pathlib import Path

from spikeprune.data.dataset import Source, Split
from spikeprune.data.formats.files import Tree, below, damaged, missing, open_tree
from spikeprune.data.formats.folders import by_class, labelled
from spikeprune.data.formats.images import decode
from spikeprune.data.registry import Facts, Request, register

_FOLDERS = ("tiny-imagenet-200", "tiny-imagenet", "TinyImageNet", "tiny_imagenet")
_ARCHIVE = "tiny-imagenet-200.zip"


@register(
    "tiny-imagenet",
    facts=Facts((3, 64, 64), 200, train=100_000, test=10_000),
    cite="Le and Yang 2015, Tiny ImageNet Visual Recognition Challenge, Stanford CS231N",
    license="that of ImageNet: research without commercial use",
    home="http://cs231n.stanford.edu/tiny-imagenet-200.zip",
)
def read(request: Request) -> Source:
    """Tiny-ImageNet in its original layout or re-foldered, unpacked or as the original .zip.

    Training images are `train/<wnid>/images/*` or `train/<wnid>/*`. The labelled `val` images are the test split:
    `val/images/*` with `val/val_annotations.txt`, or `val/<wnid>/` (as `train`). Classes are those of `wnids.txt`,
    or the folders of `train`; labels follow their alphabetical order in both. Part of the images is accepted.

    Raises: MissingFile; InvalidValue for a damaged image or an unknown class; MissingDependency without Pillow.
    """
    facts = request.facts
    tree = _tree(request.root)
    train_of = by_class(tree, "train")
    if not train_of:
        raise missing("tiny-imagenet", "train/<class>/images", tree.path)
    annotations = "val/val_annotations.txt"
    if annotations in tree.files and any(name.startswith("val/images/") for name in tree.files):
        test_of = _annotated(tree, annotations)
    else:
        test_of = by_class(tree, "val")
    if not test_of:
        raise missing("tiny-imagenet", f"val/<class>/ or {annotations} with val/images", tree.path)
    listed = "wnids.txt" in tree.files
    classes = sorted(set(tree.read("wnids.txt").decode(errors="replace").split()) if listed else train_of)

    def split(files: Mapping[str, list[str]], folder: str) -> Split:
        names, labels = labelled(files, classes, tree.path / folder, "wnids.txt" if listed else "train")
        return Split(decode(tree, names, facts.image[1:], grey=False, resize=False), labels)

    train, test = split(train_of, "train"), split(test_of, "val")
    notes = facts.absent(len(train), len(test))
    if len(classes) != facts.classes:
        notes.append(f"{len(classes)} of {facts.classes} classes present")
    return Source(train, test, tuple(classes), notes=notes)


def _tree(root: Path) -> Tree:
    for place in below(root, _FOLDERS):
        if (place / "train").is_dir():
            return open_tree(place)
        if (place / _ARCHIVE).is_file():
            return open_tree(place / _ARCHIVE).from_folder("tiny-imagenet-200")
    get_it = "get it from cs231n.stanford.edu and pass --data.root DIR"
    raise missing("tiny-imagenet", f"{_FOLDERS[0]}/train or {_ARCHIVE}", root, get_it=get_it)


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
