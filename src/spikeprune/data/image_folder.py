"""`image-folder`: any folder of image files, one folder a class; its path alone tells which data it is."""

from collections.abc import Mapping

from spikeprune.data.dataset import Source, Split
from spikeprune.data.formats.files import missing, open_tree
from spikeprune.data.formats.folders import by_class, labelled
from spikeprune.data.formats.images import decode, survey
from spikeprune.data.registry import Request, register


@register("image-folder", facts=None, cite="data of the user's own", license="that of the images")
def read(request: Request) -> Source:
    """`train/<class>/*` and `test/<class>/*` or `val/<class>/*`, at any depth below the class.

    With both, `val` is the validation split. Images of one size are taken as they are. Otherwise the largest centred
    square of each is scaled to the smallest side of any image, so that nothing is enlarged. All grey: one channel.

    Raises: MissingFile; InvalidValue for a damaged image or a class without training images; MissingDependency.
    """
    root = request.root
    tree = open_tree(root)
    files = {part: by_class(tree, part) for part in ("train", "test", "val")}
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
        names, labels = labelled(group, classes, root / folder, "train")
        return Split(decode(tree, names, size, grey=grey, resize=len(found) > 1), labels)

    return Source(
        train=split(files["train"], "train"),
        test=split(test_of, "test" if files["test"] else "val"),
        validation=split(held_out, "val") if held_out else None,
        classes=tuple(classes),
        notes=notes,
    )
