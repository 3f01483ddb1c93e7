"""Cells of the compiled network as NIR nodes: filters, delays, integrators without spikes, one-dimensional layers."""

from typing import Any

import torch
from torch import Tensor

from spikeprune.runtime.compile.network import LoweredLayer
from spikeprune.runtime.nir_graph import NirGraph, ungrouped
from spikeprune.runtime.steps.cell import Cell, double, run_cell

_LINEAR = {"add", "sub", "rsub", "mul", "div", "neg", "affine"}
STEPS = 6


def export_cell(layer: LoweredLayer, cell: Cell, graph: NirGraph) -> None:
    """Adds the layer's nodes.

    Raises: InvalidValue, naming the module, where NIR cannot say it.
    """
    import nir

    step = cell.steps[cell.output]
    if len(cell.steps) == 1 and step.base == "convolution" and len(step.shape) == 2 and not step.template[3]:
        stride, padding, dilation, _, _, groups = step.template
        weight = ungrouped(step.constants[0], groups)
        bias = step.constants[1] if len(step.constants) > 1 else torch.zeros(len(weight))
        length = graph.shapes[layer.inputs[0]][-1]
        node = nir.Conv1d(
            length, graph.numpy(weight), stride[0], padding[0], dilation[0], 1, graph.numpy(bias)
        )  # fmt: skip
        return graph.node(layer, node)
    if _delays(cell):
        return graph.node(layer, nir.Delay(graph.numpy(torch.full(layer.shape, graph.dt))))
    leaky = _leaky(cell, graph.shapes[layer.inputs[0]])
    if leaky is not None and leaky[0].shape == layer.shape:
        decay, gain = (graph.numpy(v) for v in leaky)
        if (decay == 1).all():
            return graph.node(layer, nir.I(r=gain / graph.dt))
        if not (decay == 1).any():
            leak = 1 - decay
            return graph.node(layer, nir.LI(graph.dt / leak, gain / leak, 0 * decay))
    kinds = ", ".join(sorted({s.base.strip("_") for s in cell.steps if s.base != "constant"}))
    raise graph.refuse(layer, f"NIR has no node that computes {kinds[:120]}")


def _delays(cell: Cell) -> bool:
    """Whether a cell gives its input one step later, and 0 before."""
    step = cell.steps[0]
    if len(cell.steps) != 1 or step.base != "gather" or step.inputs[0].index is not None:
        return False
    start: Any = cell.initial.get(("x", 0))
    return step.inputs[0].sources == [("x", 0, 1)] and (start is None or not bool(start.any()))


def _leaky(cell: Cell, shape: tuple[int, ...]) -> tuple[Tensor, Tensor] | None:
    """(decay, gain) of v = decay v + gain x, if the cell is that."""
    if any(step.base not in _LINEAR for step in cell.steps) or not cell.delay:
        return None
    if any(s[0] == "x" and s[1] for step in cell.steps for r in step.inputs for s in r.sources):
        return None
    exact = double(cell)

    def answer(xs: list[Tensor]) -> list[Tensor]:
        return list(run_cell(exact, [xs]))

    with torch.no_grad():
        zero, one = torch.zeros(1, *shape, dtype=torch.float64), torch.ones(1, *shape, dtype=torch.float64)
        if any(bool((y.abs() > 1e-12).any()) for y in answer([zero] * STEPS)):
            return None
        first, second, *_ = answer([one, *[zero] * (STEPS - 1)])
        if first.shape != one.shape or not bool((first.abs() > 1e-12).all()):
            return None
        gain, decay = first, second / first
        generator = torch.Generator().manual_seed(0)
        xs = [torch.rand((3, *shape), generator=generator, dtype=torch.float64) - 0.3 for _ in range(STEPS)]
        v = torch.zeros_like(xs[0])
        for x, y in zip(xs, answer(xs), strict=True):
            v = decay * v + gain * x
            if not torch.allclose(v, y, rtol=1e-9, atol=1e-12):
                return None
    return decay[0].float(), gain[0].float()
