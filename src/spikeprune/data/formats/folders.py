"""Folders of image files, one folder a class."""

from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import torch

from spikeprune.core.errors import InvalidValue
from spikeprune.data.formats.files import Tree, short
from spikeprune.data.formats.images import SUFFIXES


def by_class(tree: Tree, folder: str) -> dict[str, list[str]]:
    """Class -> its image files below `folder/<class>/`, sorted."""
    found: dict[str, list[str]] = {}
    for name in tree.files:
        parts = PurePosixPath(name).parts
        if len(parts) >= 3 and parts[0] == folder and name.lower().endswith(SUFFIXES):
            found.setdefault(parts[1], []).append(name)
    return found


def labelled(
    files: Mapping[str, list[str]], classes: list[str], folder: Path, listed_in: str
) -> tuple[list[str], torch.Tensor]:
    """File names and labels, class by class.

    Args:
        listed_in: the file or folder that lists the classes, for the message.
    Raises: InvalidValue for a class that is not in `classes`.
    """
    label_of = {name: label for label, name in enumerate(classes)}
    if stray := sorted(set(files) - set(label_of)):
        raise InvalidValue(
            f"{short(folder)} has images of class {stray[0]!r}, which {folder.parent.name}/{listed_in} lacks; "
            "every class needs training images, and wnids.txt, where there is one, lists them all"
        )
    names = [name for group in sorted(files) for name in files[group]]
    labels = [label_of[group] for group in sorted(files) for _ in files[group]]
    return names, torch.tensor(labels, dtype=torch.int64)
