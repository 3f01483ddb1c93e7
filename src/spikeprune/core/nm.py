"""Patterns n:m: at most n alive of every m neighbouring inputs of a weight."""

import torch
from jaxtyping import Bool, Float64, Shaped
from torch import Tensor

from spikeprune.core.evidence import Scores


def _grouped(weight: Tensor, m: int) -> Tensor:
    """A view of a weight [O, I, ...] as rows of m neighbouring inputs: [O * ..., I / m, m]."""
    return weight.movedim(1, -1).reshape(-1, weight.shape[1] // m, m)


def _ungrouped(rows: Tensor, shape: torch.Size) -> Tensor:
    return rows.reshape(shape[0], *shape[2:], shape[1]).movedim(-1, 1)


def _ranks(rows: Tensor) -> Tensor:
    """The rank of each value in its row, 0 = highest; ties by index."""
    return rows.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1, stable=True)


def prefer_group(
    scores: Shaped[Tensor, "O I *rest"], alive: Bool[Tensor, "O I *rest"], n: int, m: int, lift: float
) -> Float64[Tensor, "O I *rest"]:
    """Scores that rank the n best of every m above all others, so that a cut by score gives the pattern.

    `lift` is more than the finite scores differ by, the same for all layers that are ranked together.
    """
    best = _ungrouped(_ranks(_grouped(scores.masked_fill(~alive, -torch.inf), m)) < n, scores.shape)
    finite = scores.double().nan_to_num(posinf=lift / 2)
    return torch.where(best, scores.double() + lift, finite)


def span(scores: Scores) -> float:
    """A number greater than the difference of any two finite scores."""
    most = max((float(s.abs().nan_to_num(posinf=0.0).max()) for s in scores.values() if s.numel()), default=0.0)
    return 2 * most + 1


def room(
    survivors: Bool[Tensor, "O I *rest"],
    scores: Shaped[Tensor, "O I *rest"],
    dead: Bool[Tensor, "O I *rest"],
    n: int,
    m: int,
) -> Bool[Tensor, "O I *rest"]:
    """The candidates whose group of m still has room, so that at most n of it are alive."""
    space = n - _grouped(survivors, m).sum(-1, keepdim=True)
    ranks = _ranks(_grouped(scores.float().masked_fill(~dead, -torch.inf), m))
    return _ungrouped(ranks < space, survivors.shape)
