"""Weighted least squares on a mask: the kept weights of a layer that reproduce the dense layer's output best.

For each output o of a layer, over the rows r (a time step, an image and a position each):

    minimise over w[o] on its kept set:  sum_r c[o, r] (w[o] . x[:, r] - y[o, r])^2  +  lam[o] |w[o] - d[o]|^2

Shapes: O outputs, I inputs of an output, R rows. `x` is [I, R]; `y` and `c` are [O, R]; weights and masks are [O, I].
`d` are the dense weights, lam[o] = ridge * (mean of sum_r c x^2 over the kept set).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

_TINY = 1e-12


@final
@dataclass(frozen=True)
class Solver:
    """The way in which the least-squares problem of a layer is solved.

    Attributes:
        ridge: strength of the pull towards the dense weights, as a share of the mean diagonal.
        iterations: the most iterations of conjugate gradients.
        tolerance: conjugate gradients stop at this relative size of the residual, in the preconditioned norm.
        how: "direct" factors one matrix per output, "iterative" takes conjugate gradients over all outputs together,
            "auto" whichever needs fewer operations.
    """

    ridge: float = 1e-2
    iterations: int = 24
    tolerance: float = 1e-3
    how: str = "auto"


@final
class LeastSquares:
    """The rows of one layer, or of one group of a grouped layer.

    Args:
        x: inputs [I, R], in the type of y, or as bytes, which are converted whenever they are used.
        y: outputs of the dense layer [O, R], without the bias.
        c: weights of the rows [O, R], positive; None weighs all alike, and the outputs then share one Gram matrix.
    """

    def __init__(self, x: Shaped[Tensor, "I R"], y: Float[Tensor, "O R"], c: Float[Tensor, "O R"] | None) -> None:
        self._x, self.y, self.c = x, y, c
        self._gram: Tensor | None = None
        self._energy: Tensor | None = None
        self._cross: Tensor | None = None

    @property
    def x(self) -> Tensor:
        """The inputs as numbers, [I, R]. Converting costs far less than one product with them."""
        return self._x.to(self.y.dtype)

    @property
    def rows(self) -> int:
        """R."""
        return self._x.shape[1]

    def energy(self) -> Float[Tensor, "O I"]:
        """sum_r c x^2, [O, I]: the diagonal of every output's Gram matrix."""
        if self._energy is None:
            square = self.x.square()
            self._energy = square.sum(1).expand(self.y.shape[0], -1) if self.c is None else self.c @ square.T
        return self._energy

    def gram(self) -> Float[Tensor, "I I"]:
        """sum_r x x^T, [I, I], shared by all outputs where c is None."""
        if self._gram is None:
            x = self.x
            self._gram = x @ x.T
        return self._gram

    def cross(self) -> Float[Tensor, "O I"]:
        """sum_r c x y, [O, I]."""
        if self._cross is None:
            self._cross = (self.y if self.c is None else self.y * self.c) @ self.x.T
        return self._cross

    def times(self, v: Tensor, index: Tensor | slice = slice(None)) -> Tensor:
        """Each output's Gram matrix times its row of v [O', I]; `index` says which outputs the rows of v are."""
        if self.c is None and self._gram is not None:
            return v @ self._gram
        x = self.x
        through = v @ x
        if self.c is not None:
            through *= self.c[index]
        return through @ x.T

    def error(self, w: Tensor) -> tuple[float, float]:
        """(sum c (w x - y)^2, sum c y^2) over all outputs."""
        off = (w @ self.x).sub_(self.y).square_()
        whole = self.y.square()
        if self.c is not None:
            off, whole = off.mul_(self.c), whole.mul_(self.c)
        return float(off.sum(dtype=torch.float64)), float(whole.sum(dtype=torch.float64))


def solve(
    problem: LeastSquares,
    dense: Float[Tensor, "O I"],
    mask: Bool[Tensor, "O I"],
    start: Float[Tensor, "O I"],
    solver: Solver,
) -> Float[Tensor, "O I"]:
    """The minimiser w [O, I], exactly 0 outside the mask.

    Args:
        dense: d [O, I].
        mask: bool [O, I]; an output without a kept weight gets zeros.
        start: where conjugate gradients start, [O, I]; the direct solution does not depend on it.
    """
    kept = mask.sum(1)
    diagonal = problem.energy()
    lam = solver.ridge * (diagonal * mask).sum(1) / kept.clamp_min(1) + _TINY
    if _is_direct(problem, kept, solver):
        return _direct(problem, dense, mask, lam)
    target = (problem.cross() + lam[:, None] * dense).mul_(mask)

    def apply(v: Tensor, index: Tensor | slice) -> Tensor:
        return problem.times(v, index).addcmul_(lam[index][:, None], v).mul_(mask[index])

    scale = (diagonal + lam[:, None]).clamp_min(_TINY)
    return _conjugate_gradients(apply, target, scale, start * mask, solver)


def _is_direct(problem: LeastSquares, kept: Tensor, solver: Solver) -> bool:
    """Whether one factorisation per output needs fewer operations than conjugate gradients."""
    if solver.how != "auto":
        return solver.how == "direct"
    (outputs, inputs), rows = problem.energy().shape, problem.rows
    sizes = kept.double()
    shared = problem.c is None
    build = 2.0 * rows * inputs**2 if shared else float((2.0 * rows * sizes**2).sum())
    # A factorisation in double precision runs at about a fifth of the speed of a product in single precision; every
    # output costs about 2e6 operations' time in calls.
    direct = build + float((5 * sizes**3 / 3 + 2e6).sum())
    each = 2.0 * outputs * inputs * (min(inputs, 2 * rows) if shared else 2 * rows)
    return direct <= solver.iterations * each


def _direct(problem: LeastSquares, dense: Tensor, mask: Tensor, lam: Tensor) -> Tensor:
    result = torch.zeros_like(dense)
    gram = problem.gram() if problem.c is None else None
    cross = problem.cross() if problem.c is None else None
    inputs = problem.x
    for o, kept in enumerate(mask):
        s = kept.nonzero().flatten()
        if len(s) == 0:
            continue
        if gram is not None and cross is not None:
            a, b = gram[s][:, s], cross[o, s]
        else:
            assert problem.c is not None
            x = inputs[s]
            weighted = x * problem.c[o]
            a, b = weighted @ x.T, weighted @ problem.y[o]
        a, b = a.double(), b.double() + lam[o].double() * dense[o, s].double()
        a.diagonal().add_(lam[o].double())
        result[o, s] = _factored(a, b).to(dense.dtype)
    return result


def inverse_diagonal(problem: LeastSquares, mask: Tensor, solver: Solver) -> Tensor:
    """Diagonal of the inverse of every output's Gram matrix, ridge included, on its kept set; 1 outside. [O, I]

    One inversion per output: for small layers.
    """
    inputs = problem.x
    result = torch.ones_like(mask, dtype=inputs.dtype)
    diagonal = problem.energy()
    lam = solver.ridge * (diagonal * mask).sum(1) / mask.sum(1).clamp_min(1) + _TINY
    for o, kept in enumerate(mask):
        s = kept.nonzero().flatten()
        if len(s):
            x = inputs[s].double()
            a = (x if problem.c is None else x * problem.c[o]) @ x.T
            a.diagonal().add_(lam[o].double())
            result[o, s] = torch.linalg.inv(a).diagonal().to(result.dtype)
    return result


def _factored(a: Tensor, b: Tensor) -> Tensor:
    """a^-1 b for a symmetric positive matrix; rounding may have made it slightly indefinite, so more ridge is tried."""
    for attempt in range(8):
        factor, failed = torch.linalg.cholesky_ex(a)
        if not int(failed):
            return torch.cholesky_solve(b[:, None], factor)[:, 0]
        a = a.clone()
        a.diagonal().add_(10.0 ** (attempt - 7) * a.diagonal().mean())
    if not bool(a.isfinite().all() and b.isfinite().all()):
        return torch.full_like(b, float("nan"))  # of squares that overflow
    return torch.linalg.lstsq(a, b[:, None]).solution[:, 0]


def _conjugate_gradients(
    apply: Callable[[Tensor, Tensor | slice], Tensor],
    target: Tensor,
    scale: Tensor,
    start: Tensor,
    solver: Solver,
) -> Tensor:
    """Solves apply(w) = target for all outputs at once, preconditioned by the diagonal `scale`.

    Outputs that have converged leave the products, so that the others do not pay for them.
    """
    result = start.clone()
    index = torch.arange(len(target), device=target.device)
    residual = target - apply(start, slice(None)) if bool(start.any()) else target.clone()
    limit = _dot(target, target / scale) * solver.tolerance**2
    z = residual / scale
    p, size = z.clone(), _dot(residual, z)
    for _ in range(solver.iterations):
        going = ~(size <= limit[index])  # nan goes on, so that the result tells of it
        if not bool(going.all()):
            index, residual, p, size = index[going], residual[going], p[going], size[going]
        if len(index) == 0:
            break
        q = apply(p, index)
        step = (size / _dot(p, q).clamp_min(1e-300)).to(p.dtype)[:, None]
        result.index_add_(0, index, step * p)
        residual = residual.sub_(step * q)
        z = residual / scale[index]
        after = _dot(residual, z)
        p = p.mul_((after / size.clamp_min(1e-300)).to(p.dtype)[:, None]).add_(z)
        size = after
    return result


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(1, dtype=torch.float64)
