"""One prunable weight during a squeeze: its rows, its dense weights, and the quantities behind its scores."""

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import final

import torch
from torch import Tensor

from spikeprune.squeeze.rows import Rows
from spikeprune.squeeze.select import Quantities
from spikeprune.squeeze.solve import LeastSquares, Solver, inverse_diagonal, solve


def row_weights(
    c: Tensor, power: float, eps: float, *, per_output: bool, counts: Tensor | None = None
) -> Tensor:  # fmt: skip
    """c^power / its mean + eps, [O, R]; the mean is over the rows of each output, or over all of them.

    An output whose derivative is 0 in all rows, far from its threshold throughout, weighs its rows alike.

    Args:
        counts: how many rows each one stands for, [R]; they count so often in the mean and in what is returned.
    """
    c = c.clamp_min(0)
    c = c if power == 1 else c**power
    if counts is None:
        mean = c.mean(1, keepdim=True) if per_output else c.mean().expand(c.shape[0], 1)
    else:
        mean = (c @ (counts / counts.sum()).to(c.dtype))[:, None]
        mean = mean if per_output else mean.mean().expand(c.shape[0], 1)
    found = torch.where(mean > 0, c / mean.clamp_min(1e-30), torch.ones_like(c)).add_(eps)
    return found if counts is None else found.mul_(counts.to(c.dtype))


@final
class LayerProblem:
    """The least-squares problems of one weight, a problem per group.

    Args:
        weight: the dense weights, [O, I / G, *kernel].
        rows: what was drawn, None where nothing can be: then the layer is masked only.
        weighted: whether the solve weighs rows by criticality.
        shift: whether a constant is solved along with the weights.
    """

    def __init__(
        self,
        weight: Tensor,
        rows: Rows | None,
        *,
        weighted: bool,
        shift: bool,
        power: float,
        eps: float,
        solver: Solver,
    ) -> None:
        self.shape = weight.shape
        self.dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        self.dense = weight.detach().to(self.dtype, copy=True).flatten(1)  # [O, I]; the parameter will be overwritten
        self.rows, self.solver, self.power, self.eps = rows, solver, power, eps
        self.shift = torch.zeros(len(self.dense), dtype=self.dtype, device=weight.device)
        self.seconds = 0.0
        self._constant = 0.0
        self.problems: list[LeastSquares] = []  # one per group
        if rows is None:
            ones = torch.ones_like(self.dense)
            self.known = Quantities(ones, ones, float(self.dense.square().sum()))
            return
        if shift:
            mean_square = rows.x.to(self.dtype).square().mean()
            self._constant = float(mean_square.sqrt()) or 1.0
        self.known = self._quantities(rows)
        self.problems = self._made(rows, weighted)
        scarce = max(1.0, self.dense.shape[1] / rows.x.shape[2])  # a layer with few rows fits its images too well
        self.solver = replace(solver, ridge=solver.ridge * scarce**2)
        rows.c = None  # its parts live on, normalised

    @property
    def weighted(self) -> bool:
        """Whether rows weigh by criticality in the solve."""
        return any(problem.c is not None for problem in self.problems)

    def _quantities(self, rows: Rows) -> Quantities:
        c = None
        if rows.c is not None:
            c = row_weights(rows.c.to(self.dtype), self.power, self.eps, per_output=False, counts=rows.counts)
        energies, critical, output = [], [], 0.0
        for g, part in enumerate(self._groups()):
            x = rows.x[g].to(self.dtype)
            plain = LeastSquares(x, self.dense[part] @ x, None if c is None else c[part])
            square = x.square() if rows.counts is None else x.square() * rows.counts.to(x.dtype)
            energies.append(square.sum(1).expand(len(plain.y), -1))
            critical.append(plain.energy())
            output += plain.error(torch.zeros_like(self.dense[part]))[1]
        return Quantities(torch.cat(energies), torch.cat(critical), output)

    def _groups(self) -> list[slice]:
        count = 1 if self.rows is None else self.rows.x.shape[0]
        size = len(self.dense) // count
        return [slice(g * size, (g + 1) * size) for g in range(count)]

    def _made(self, rows: Rows, weighted: bool) -> list[LeastSquares]:
        c = (
            row_weights(rows.c.to(self.dtype), self.power, self.eps, per_output=True, counts=rows.counts)
            if weighted and rows.c is not None
            else None
        )
        made: list[LeastSquares] = []
        for g, part in enumerate(self._groups()):
            x = rows.x[g] if rows.x.dtype == torch.uint8 else rows.x[g].to(self.dtype)
            y = self.dense[part] @ x.to(self.dtype)
            if self._constant:
                x = x.to(self.dtype)
                x = torch.cat([x, x.new_full((1, x.shape[1]), self._constant)])
            made.append(LeastSquares(x, y, None if c is None else c[part]))
        return made

    def solve(self, weight: Tensor, mask: Tensor, iterations: int) -> Tensor:
        """The weights on the mask that reproduce the dense outputs best, in the parameter's shape.

        Args:
            weight: the present weights; an iterative solution starts from them.
            iterations: the most steps of an iterative solution.
        """
        if self.rows is None or self.rows.silent:
            return torch.where(mask, weight, torch.zeros_like(weight))
        started = time.perf_counter()
        solver = Solver(self.solver.ridge, iterations, self.solver.tolerance, self.solver.how)
        start, kept = weight.to(self.dtype).flatten(1), mask.flatten(1)
        found = []
        for part, problem in zip(self._groups(), self.problems, strict=True):
            dense, on, first = self.dense[part], kept[part], start[part]
            if self._constant:
                dense = torch.cat([dense, dense.new_zeros(len(dense), 1)], 1)
                on = torch.cat([on, on.new_ones(len(on), 1)], 1)
                first = torch.cat([first, self.shift[part, None] / self._constant], 1)
            found.append(solve(problem, dense, on, first, solver))
        solved = torch.cat(found)
        if self._constant:
            self.shift = solved[:, -1] * self._constant
            solved = solved[:, :-1]
        self.seconds += time.perf_counter() - started
        return torch.where(kept, solved, torch.zeros_like(solved)).view(self.shape)

    def error(self, weight: Tensor) -> float | None:
        """Sum of squared output errors over the sum of squared outputs, weighted as the solve was."""
        if self.rows is None:
            return None
        w = weight.to(self.dtype).flatten(1)
        off = whole = 0.0
        for part, problem in zip(self._groups(), self.problems, strict=True):
            v = w[part]
            if self._constant:
                v = torch.cat([v, self.shift[part, None] / self._constant], 1)
            found = problem.error(v)
            off, whole = off + found[0], whole + found[1]
        return off / whole if whole else 0.0

    def inverse(self, mask: Tensor) -> Tensor:
        """Diagonal of every output's inverse Gram matrix on its kept set, [O, I]; 1 elsewhere."""
        if self.rows is None:
            return torch.ones_like(self.dense)
        kept = mask.flatten(1)
        parts = [
            inverse_diagonal(LeastSquares(p.x[: kept.shape[1]], p.y, p.c), kept[part], self.solver)
            for part, p in zip(self._groups(), self.problems, strict=True)
        ]
        return torch.cat(parts)


def too_few_rows(problems: Mapping[str, LayerProblem], masks: Mapping[str, Tensor], images: int) -> str | None:
    """Advice if a neuron keeps more weights than its layer has rows. None if every layer has enough rows.

    Args:
        images: how many were used.
    """
    most = {n: int(masks[n].flatten(1).sum(1).max()) for n in problems if n in masks}
    rows = {n: p.rows for n, p in problems.items() if n in most and p.rows is not None}
    short: dict[str, int] = {}  # name -> images that would give enough rows; 0 where more rows can be drawn of these
    for name, drawn in rows.items():
        if drawn.x.shape[2] < most[name]:
            more = math.ceil(images * most[name] / drawn.available)
            short[name] = max(1, more) if drawn.available < most[name] else 0
    if not short:
        return None
    name = max(short, key=lambda n: short[n])
    advice = f"images={short[name]}" if short[name] else f"rows={most[name]}"
    return (
        f"{name!r} has {rows[name].x.shape[2]} rows for up to {most[name]} weights of a neuron, so the ridge decides a "
        f"part of them; pass {advice} or more (layers with too few rows: {len(short)})"
    )
