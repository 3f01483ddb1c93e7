"""Image files to tensors: same size as they are, or resized by one stated rule."""

import io
from collections.abc import Sequence
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from spikeprune.core.errors import MissingDependency
from spikeprune.data.formats.files import Tree, damaged, named

SUFFIXES = (".jpeg", ".jpg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".gif")


def pillow() -> ModuleType:
    """PIL.Image. Raises: MissingDependency without Pillow."""
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingDependency("WebP, JPEG and PNG images need Pillow: pip install 'spikeprune[images]'") from error
    return Image


def survey(tree: Tree, names: Sequence[str]) -> tuple[set[tuple[int, int]], bool]:
    """Sizes (height, width) that occur, and whether all images are grey, from the headers alone."""
    image_of = pillow()
    sizes: set[tuple[int, int]] = set()
    grey = True
    for name in names:
        with tree.open(name) as file, image_of.open(file) as image:
            sizes.add((image.height, image.width))
            grey &= image.mode in ("1", "L", "LA")
    return sizes, grey


def decode(tree: Tree, names: Sequence[str], size: tuple[int, int], *, grey: bool, resize: bool) -> Tensor:
    """The images as uint8 [N, C, H, W], C = 1 if `grey`, else 3.

    With `resize` the largest centred square of each image is scaled to `size` (bilinear over the covered area);
    without it an image of another size is an error that names it.
    """
    image_of = pillow()
    height, width = size
    mode = "L" if grey else "RGB"
    out = np.empty((len(names), height, width, 1 if grey else 3), np.uint8)
    for row, name in zip(out, names, strict=True):
        content = tree.read(name)  # to its end, where a .zip keeps the sum that guards it
        with named(tree.path / name), image_of.open(io.BytesIO(content)) as image:
            if image.mode.startswith(("I", "F")):
                raise damaged(tree.path / name, f"pixels of mode {image.mode}, not of 8 bits")
            picture = image.convert(mode)
        if resize:
            side = min(picture.size)
            left, top = (picture.width - side) // 2, (picture.height - side) // 2
            box = (left, top, left + side, top + side)
            picture = picture.resize((width, height), image_of.Resampling.BILINEAR, box=box)
        elif picture.size != (width, height):
            raise damaged(tree.path / name, f"{picture.width}x{picture.height} pixels, not {width}x{height}")
        with named(tree.path / name):
            row[...] = np.asarray(picture).reshape(row.shape)
    return torch.from_numpy(out).permute(0, 3, 1, 2).contiguous()
