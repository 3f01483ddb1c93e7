"""Rows drawn more often where neurons are near their threshold, with sums that stay unbiased.

Row r is kept with chance p_r, each on its own, and then stands for 1 / p_r rows:

    p_r = min(1, a * (mean over outputs of c[o, r] / mean c + eps)),   a such that sum_r p_r is the number asked for
    sum over kept r of f_r / p_r   has the mean   sum over all r of f_r   and the variance   sum_r (1 - p_r) / p_r f_r^2

Source: Horvitz & Thompson 1952, J. Am. Stat. Assoc. 47 (the estimate).
"""

import torch
from torch import Tensor

from spikeprune.squeeze.rows import Rows


def chances(c: Tensor, rows: int, eps: float) -> Tensor:
    """The probability p_r of each row to be drawn, [R], for c [O, R]. They add up to `rows`, or are 1 if R <= rows."""
    weight = c.double().clamp_min(0).mean(0)
    weight = weight / weight.mean().clamp_min(1e-300) + eps
    if rows >= len(weight):
        return torch.ones_like(weight)
    sure = torch.zeros_like(weight, dtype=torch.bool)
    while True:
        scale = (rows - int(sure.sum())) / weight[~sure].sum()
        over = ~sure & (weight * scale >= 1)
        if not bool(over.any()):
            return torch.where(sure, torch.ones_like(weight), weight * scale)
        sure |= over


def thinned(rows: Rows, count: int, seed: int, eps: float = 0.2) -> Rows:
    """About `count` of the rows, drawn by their chances; in layers that feed no neuron all chances are equal."""
    available = rows.x.shape[2]
    if count >= available:
        return rows
    if rows.c is None:
        p = torch.full((available,), count / available, dtype=torch.float64, device=rows.x.device)
    else:
        p = chances(rows.c, count, eps)
    draw = torch.rand(available, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    kept = (draw.to(p.device) < p).nonzero().flatten()
    if len(kept) == 0:
        return rows
    return Rows(
        rows.x[:, :, kept],
        None if rows.c is None else rows.c[:, kept],
        rows.available,
        rows.note,
        None if rows.c is None else 1 / p[kept],
    )
