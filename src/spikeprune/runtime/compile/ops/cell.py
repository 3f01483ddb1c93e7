"""Any function of one time step that has no operation of its own, with what it keeps from step to step, in PyTorch."""

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from spikeprune.core.errors import InvalidValue
from spikeprune.runtime.compile.network import LoweredLayer
from spikeprune.runtime.compile.ops import base
from spikeprune.runtime.compile.ops.base import Operation, Runner, Shape, register
from spikeprune.runtime.steps.cell import Cell, read, run_cell
from spikeprune.runtime.steps.steps import StepFunction

if TYPE_CHECKING:
    from spikeprune.runtime.nir_graph import NirGraph

LARGEST_BLOCK = 1 << 24
LARGEST_TRIED = 1 << 18  # numbers that the steps of a program give, in all, for it to be run when it is loaded


class _Program(Operation):
    """Shared by both operations of this file."""

    def check(self, layer: LoweredLayer, inputs: list[Shape]) -> Shape:
        ranks = tuple(len(shape) for shape in inputs)
        told = set(layer.options) == {"program", "ranks"} and isinstance(layer.options["program"], str)
        if not told or layer.options["ranks"] != ranks:
            raise base.wrong(layer, "its program is missing")
        try:
            return _checked(layer, cell_of(layer), inputs)
        except InvalidValue:
            raise
        except (ValueError, KeyError, TypeError, IndexError, RuntimeError, AttributeError, RecursionError) as error:
            raise base.wrong(layer, f"its program is damaged ({type(error).__name__})") from None

    def compute(self, layer: LoweredLayer, values: list[Tensor], static: bool, T: int) -> Tensor:
        return self.runner(layer, static)(values, T)

    def runner(self, layer: LoweredLayer, static: bool) -> Runner:
        cell, ranks = cell_of(layer), layer.options["ranks"]
        assert isinstance(ranks, tuple)

        def run(values: list[Tensor], T: int) -> Tensor:
            if static and self.keeps_static:
                return next(run_cell(cell, [[v] for v in values]))
            steps = [[v] * T if v.dim() == rank + 1 else v for v, rank in zip(values, ranks, strict=True)]
            if self.keeps_static and all(v.dim() == rank + 2 for v, rank in zip(values, ranks, strict=True)):
                lead = values[0].shape[:2]  # each step by itself, so all at once
                return next(run_cell(cell, [[v.flatten(0, 1)] for v in values])).unflatten(0, lead)
            return torch.stack(list(run_cell(cell, [list(s) for s in steps])))

        return run

    def export_nir(self, layer: LoweredLayer, graph: "NirGraph") -> None:
        from spikeprune.runtime.nir_cells import export_cell

        export_cell(layer, cell_of(layer), graph)


@register
class CellOperation(_Program):
    """A neuron of another kind than integrate-and-fire, a filter, recurrent weights."""

    name = "cell"
    keeps_static = False


@register
class FunctionOperation(_Program):
    """A product of two values, a permutation, any function of one time step."""

    name = "function"


def cell_of(layer: LoweredLayer) -> Cell:
    """The cell that a layer runs at each time step, read from its stored program."""
    program = layer.options["program"]
    assert isinstance(program, str)
    return read(program, layer.tensors)


def _checked(layer: LoweredLayer, cell: Cell, inputs: list[Shape]) -> Shape:
    if not 0 <= cell.output < len(cell.steps) or cell.delay > 64:
        raise base.wrong(layer, "its program has no result")
    sizes = {("x", k): math.prod(shape) for k, shape in enumerate(inputs)}
    shapes: dict[tuple[str, int], Shape] = {("s", j): step.shape for j, step in enumerate(cell.steps)}
    sizes |= {key: math.prod(shape) for key, shape in shapes.items()}
    for j, step in enumerate(cell.steps):
        if any(type(size) is not int or size < 1 for size in step.shape) or math.prod(step.shape) > LARGEST_BLOCK:
            raise base.wrong(layer, "a block of its program is too large")
        for region in step.inputs:
            if not all(len(s) == 3 and type(s[1]) is type(s[2]) is int for s in region.sources):
                raise base.wrong(layer, "a source of its program is none")
            total = sum(sizes[s[0], s[1]] for s in region.sources)
            if any(s[2] < 0 or (s[0] == "s" and s[2] == 0 and s[1] >= j) for s in region.sources):
                raise base.wrong(layer, "its program reads a value before it is made")
            wanted = math.prod(region.shape)
            if region.index is None and (len(region.sources) != 1 or total != wanted):
                raise base.wrong(layer, "a value of its program does not fit")
            if region.index is not None:
                fits = region.index.dtype == torch.int64 and region.index.numel() == wanted
                if not fits or int(region.index.min()) < 0 or int(region.index.max()) >= total:
                    raise base.wrong(layer, "an index of its program is out of range")
    # Shapes are computed on tensors that hold nothing, for two numbers of samples: a step of constants alone has a size
    # of its own. The processor refuses more than such tensors do, so a small program is tried on it as well.
    probes = [("meta", 2), ("meta", 3)]
    if sum(sizes.values()) <= LARGEST_TRIED:
        probes.append(("cpu", 1))
    for device, n in probes:
        flat = Cell(
            [_moved(step, device) for step in cell.steps],
            cell.output,
            {k: v.to(device) for k, v in cell.initial.items()},
        )
        now = next(run_cell(flat, [[torch.zeros((n, *shape), device=device)] for shape in inputs], everything=True))
        if any(tuple(now["s", j].shape) != (n, *step.shape) for j, step in enumerate(cell.steps)):
            raise base.wrong(layer, "a step of its program gives another shape than it says")
    return tuple(cell.steps[cell.output].shape)


def _moved(step: StepFunction, device: str) -> StepFunction:
    regions = [replace(r, index=None if r.index is None else r.index.to(device)) for r in step.inputs]
    return replace(step, inputs=regions, constants=[c.to(device) for c in step.constants])
