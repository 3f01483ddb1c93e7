"""Random crop, horizontal flip and cutout of a whole batch at once, on the device that holds it.

Each transform is a pure function of the images and of the draws (one per image); `Augment` makes the draws. All work
on pixels as they are stored, before normalisation, so the filled-in pixels are black: the order of the paper's
unstructured recipe.

Shapes: N batch, C channels, H/W space; T time steps of a recording, which share one draw.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int64, Shaped
from torch import Tensor

from spikeprune.core.errors import InvalidValue


def crop(
    x: Shaped[Tensor, "N C H W"], top: Int64[Tensor, "N"], left: Int64[Tensor, "N"], padding: int
) -> Shaped[Tensor, "N C H W"]:
    """Each image shifted within a black border: out[n, c, i, j] = padded[n, c, i + top[n], j + left[n]].

    Args:
        top, left: where the window starts in the padded image, 0 .. 2 * padding; `padding` leaves the image in place.
        padding: pixels of border on each side.
    """
    height, width = x.shape[-2:]
    padded = F.pad(x, [padding] * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view, [N, C, 2p + 1, 2p + 1, H, W]
    return windows[torch.arange(len(x), device=x.device), :, top, left]


def flip(x: Shaped[Tensor, "N C H W"], which: Bool[Tensor, "N"]) -> Shaped[Tensor, "N C H W"]:
    """The images where `which` is True, mirrored left to right; the others as they are."""
    return torch.where(which[:, None, None, None], x.flip(-1), x)


def cutout(
    x: Shaped[Tensor, "N C H W"], row: Int64[Tensor, "N"], column: Int64[Tensor, "N"], size: int
) -> Shaped[Tensor, "N C H W"]:
    """Each image with a square of `size` pixels around (row, column) set to 0; the border clips the square.

    The square covers rows row - size // 2 up to, not including, row - size // 2 + size; columns alike.
    Source: DeVries and Taylor 2017, arXiv:1708.04552; the centre may lie on any pixel, so squares get clipped.
    """

    def covered(centre: Int64[Tensor, "N"], length: int) -> Bool[Tensor, "N length"]:
        first = centre[:, None] - size // 2
        position = torch.arange(length, device=x.device)
        return (position >= first) & (position < first + size)

    hole = covered(row, x.shape[-2])[:, None, :, None] & covered(column, x.shape[-1])[:, None, None, :]
    return x.masked_fill(hole, 0)


@dataclass(frozen=True)
class Augment:
    """Crop, flip and cutout with random draws, in this order; a step whose setting is 0 or False draws nothing.

    Args:
        crop: padding of the random crop in pixels; the shift is uniform over the (2 * crop + 1)^2 positions.
        flip: mirror each image with probability 1/2.
        cutout: side of the black square in pixels; its centre is uniform over the image.
    Raises: InvalidValue for a negative setting, and when called on anything but images.
    """

    crop: int = 0
    flip: bool = False
    cutout: int = 0

    def __post_init__(self) -> None:
        for name in ("crop", "cutout"):
            if getattr(self, name) < 0:
                raise InvalidValue(f"augment {name} must be 0 (off) or a number of pixels, got {getattr(self, name)}")

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """The augmented batch, [N, C, H, W] or [T, N, C, H, W], in the dtype it came in.

        The draws are made on the generator's device and moved to the images: a CPU generator gives the same
        augmentation on every device.
        """
        if x.dim() not in (4, 5):
            raise InvalidValue(
                f"augmentation needs images [N, C, H, W] or [T, N, C, H, W], got shape {list(x.shape)}; switch it off"
            )
        if x.dim() == 5:  # time steps of one recording move together, as channels do
            steps = x.shape[0]
            return self(x.transpose(0, 1).flatten(1, 2), generator).unflatten(1, (steps, -1)).transpose(0, 1)
        count, _, height, width = x.shape

        def draw(high: int) -> Int64[Tensor, "N"]:
            return torch.randint(high, (count,), generator=generator, device=generator.device).to(x.device)

        if self.crop:
            x = crop(x, draw(2 * self.crop + 1), draw(2 * self.crop + 1), self.crop)
        if self.flip:
            x = flip(x, draw(2).bool())
        if self.cutout:
            x = cutout(x, draw(height), draw(width), self.cutout)
        return x
