"""A quantile of any number of values: torch.quantile stops at 16 million."""

import math

from torch import Tensor


def quantile(x: Tensor, share: float) -> Tensor:
    """The value below which `share` of all entries lie, between two of them on the line through both.

    Args:
        x: of any shape, at least one entry.
        share: in [0, 1].
    """
    flat = x.flatten()
    place = share * (flat.numel() - 1)
    below, above = math.floor(place), math.ceil(place)
    low, high = (flat.kthvalue(1 + rank).values for rank in (below, above))
    return low + (high - low) * (place - below)
