"""Quantiles of any number of values (torch.quantile stops at 16 million), and values scaled to a range."""

import math

import torch
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


def scaled(x: Tensor, top: Tensor | None = None) -> Tensor:
    """(x - min) / (top - min), 0.5 where the two are alike; `top` is the maximum if not given."""
    low, high = x.min(), x.max() if top is None else top
    return torch.full_like(x, 0.5) if bool(low == high) else (x - low) / (high - low)
