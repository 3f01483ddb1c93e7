"""Cells of the compiled network as NIR nodes: filters, delays, integrators without spikes, one-dimensional layers."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from spikeprune.runtime.compile.network import LoweredLayer, Option
from spikeprune.runtime.compile.ops.base import operation
from spikeprune.runtime.nir_graph import NirGraph, ungrouped
from spikeprune.runtime.steps.cell import Cell, Source, double, run_cell
from spikeprune.runtime.steps.identify import normal_form
from spikeprune.runtime.steps.kinds import by_channel
from spikeprune.runtime.steps.steps import StepFunction

_LINEAR = {"add", "sub", "rsub", "mul", "div", "neg", "affine"}
_SUMS = ([["i", 0], ["i", 1]], [["i", 1], ["i", 0]], [("i", 0), ("i", 1)])
STEPS = 6


def export_cell(layer: LoweredLayer, cell: Cell, graph: NirGraph) -> None:
    """Adds NIR nodes for a layer that runs a cell.

    Raises: InvalidValue, which names the module, if NIR has no nodes that compute it.
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
    bound = _bound(cell)
    if bound is not None:
        graph.node(layer, nir.Threshold(graph.numpy(bound.expand(layer.shape).float())))
        graph.binary.add(layer.output)
        return None
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
    if len(layer.inputs) == 1 and (_export_recurrent(layer, cell, graph) or _export_neuron(layer, cell, graph)):
        return None
    kinds = ", ".join(sorted({s.base.strip("_") for s in cell.steps if s.base != "constant"}))
    raise graph.refuse(layer, f"NIR has no node that computes {kinds[:120]}")


def _bound(cell: Cell) -> Tensor | None:
    """c if the cell computes x > c and nothing else; else None."""
    step = cell.steps[0]
    if len(cell.steps) != 1 or step.base != "gt" or not _whole(step) or len(step.template) != 2:
        return None
    left, right = step.template
    if not isinstance(left, (tuple, list)) or left[0] != "i":
        return None
    if isinstance(right, (tuple, list)):
        return step.constants[right[1]] if right[0] == "c" else None
    return torch.tensor(float(right))


def _whole(step: StepFunction) -> bool:
    """Whether a step reads the cell's input of the same step as it is, and nothing else."""
    return all(r.index is None and r.sources == [("x", 0, 0)] for r in step.inputs)


def _export_recurrent(layer: LoweredLayer, cell: Cell, graph: NirGraph) -> bool:
    """A neuron whose spikes come back through weights at the next step, x_t + W s_{t-1} + b; False if it is none.

    The weights become a node behind the neuron, and an edge from it back to the neuron closes a loop.
    """
    import nir

    found = _without_weights(cell, layer.shape)
    if found is None:
        return False
    alone, weight, bias = found
    begins = torch.zeros_like(bias)  # what of b is there from the first step on
    if not _comes_back(cell, alone, weight, bias, layer.shape, early=False):
        if not _comes_back(cell, alone, weight, bias, layer.shape, early=True):
            return False
        begins, bias = bias, begins
    before = len(graph.edges)
    if not _export_neuron(layer, alone, graph, begins):
        return False
    (entry,) = {b for a, b in graph.edges[before:] if a in graph.sources[layer.inputs[0]]}
    (spikes,) = graph.sources[layer.output]
    graph.node(layer, nir.Affine(graph.numpy(weight), graph.numpy(bias)), "_back", source=layer.output)
    (back,) = graph.sources[layer.output]
    graph.edges.append((back, entry))
    graph.sources[layer.output] = [spikes]
    return True


def _export_neuron(layer: LoweredLayer, cell: Cell, graph: NirGraph, current: Tensor | None = None) -> bool:
    """An integrate-and-fire neuron, perhaps behind a filter of its currents; False if the cell is none.

    current: what is added to the neuron's input.
    """
    import nir

    normal = normal_form(cell, layer.shape)
    if normal is None:
        parts = _behind_filter(cell, layer.shape)
        if parts is None or (current is not None and bool(current.any())):
            return False
        (decay, gain), cell = parts
        normal = normal_form(cell, layer.shape)
        if normal is None or bool((decay == 1).any()):
            return False
        leak = 1 - graph.numpy(decay)
        graph.node(layer, nir.LI(graph.dt / leak, graph.numpy(gain) / leak, 0 * leak), "_filter")
        value = -1 - len(graph.nodes)  # one that the network does not have
        graph.sources[value], graph.shapes[value] = graph.sources[layer.output], layer.shape
        layer = replace(layer, inputs=(value,))
    numbers: dict[str, Tensor] = {}
    for name in ("decay", "gain", "shift", "threshold", "reset"):
        value = getattr(normal, name)
        if name == "shift" and current is not None:
            value = value + normal.gain * current
        one = by_channel(value, layer.shape)
        if one is None:
            return False
        numbers[name] = one
    options: dict[str, Option] = {"soft": normal.soft, "strict": normal.strict}
    fires, start = operation("neuron"), torch.zeros_like(numbers["decay"])
    fires.export_nir(replace(layer, op=fires, options=options, tensors={**numbers, "start": start}), graph)
    return True


def _behind_filter(cell: Cell, shape: tuple[int, ...]) -> tuple[tuple[Tensor, Tensor], Cell] | None:
    """((decay, gain) of a filter, the cell that reads the filter's result in place of the input); None if none is."""
    for place in range(len(cell.steps) - 1, -1, -1):
        first = _steps_behind(cell, place, None)
        if place == cell.output or cell.output in first:
            continue
        found = _leaky(_part(cell, first, place, None), shape)
        if found is None or found[0].shape != shape:
            continue
        rest = _steps_behind(cell, cell.output, place)
        if not any(s[0] == "x" for j in rest for r in cell.steps[j].inputs for s in r.sources):
            return found, _part(cell, rest, cell.output, place)
    return None


def _steps_behind(cell: Cell, place: int, border: int | None) -> list[int]:
    """The steps that step `place` is computed from, itself included. The search stops at the step `border`."""
    found, open_ = {place}, [place]
    while open_:
        for region in cell.steps[open_.pop()].inputs:
            for kind, number, _ in region.sources:
                if kind == "s" and number != border and number not in found:
                    found.add(number)
                    open_.append(number)
    return sorted(found)


def _part(cell: Cell, kept: list[int], output: int, border: int | None) -> Cell:
    """Some steps of a cell as a cell; the result of the step `border` is its input."""
    number = {j: place for place, j in enumerate(kept)}

    def moved(s: tuple[Any, ...]) -> tuple[Any, ...]:
        if s[:2] == ("s", border):
            return ("x", 0, s[2])
        return (s[0], number[s[1]], s[2]) if s[0] == "s" else s

    steps = [
        replace(step, inputs=[replace(r, sources=[moved(s) for s in r.sources]) for r in step.inputs])
        for step in (cell.steps[j] for j in kept)
    ]
    initial: dict[Source, Tensor] = {}
    for (kind, n), value in cell.initial.items():
        if kind == "x":
            initial[kind, n] = value
        elif n in number:
            initial[kind, number[n]] = value
    return Cell(steps, number[output], initial)


def _without_weights(cell: Cell, shape: tuple[int, ...]) -> tuple[Cell, Tensor, Tensor] | None:
    """(the cell without its recurrent weights, W, b), None if it has none that read its result alone."""
    places = [j for j, step in enumerate(cell.steps) if step.base == "linear"]
    if len(places) != 1 or len(shape) != 1:
        return None
    (place,) = places
    linear = cell.steps[place]
    read = [r.sources for r in linear.inputs]
    if read != [[("s", cell.output, 0)]] or linear.inputs[0].index is not None or not linear.constants:
        return None
    steps: list[StepFunction] = []
    for step in cell.steps:
        reads = [r.sources == [("s", place, 1)] for r in step.inputs]
        if any(reads):
            if step.base != "add" or len(reads) != 2 or all(reads) or [*step.template] not in _SUMS:
                return None
            kept = step.inputs[reads.index(False)]
            step = replace(step, name="mul.Tensor", template=[["i", 0], 1.0], inputs=[kept], keywords={})
        steps.append(step)
    if any(s[:2] == ("s", place) for step in steps for r in step.inputs for s in r.sources):
        return None
    alone = _part(replace(cell, steps=steps), [j for j in range(len(steps)) if j != place], cell.output, None)
    weight = linear.constants[0]
    bias = linear.constants[1] if len(linear.constants) > 1 else torch.zeros(len(weight))
    return alone, weight, bias


def _comes_back(cell: Cell, alone: Cell, weight: Tensor, bias: Tensor, shape: tuple[int, ...], *, early: bool) -> bool:
    """Whether the cell is `alone` on x_t + W s_{t-1} + b, tried on random currents in float64.

    early: whether b is there at the first step too.
    """
    generator = torch.Generator().manual_seed(0)
    xs = [torch.randn((16, *shape), generator=generator, dtype=torch.float64) * (1, 4)[t % 2] for t in range(2 * STEPS)]
    late: list[Tensor] = []

    def currents() -> Iterator[Tensor]:
        for x in xs:
            yield x + late[-1] @ weight.double().T + bias.double() if late else x + bias.double() * early

    with torch.no_grad():
        for y in run_cell(double(alone), [currents()]):
            late.append(y)
        wanted = list(run_cell(double(cell), [xs]))
    return all(torch.equal(a.double(), b.double()) for a, b in zip(late, wanted, strict=True))


def _delays(cell: Cell) -> bool:
    """Whether a cell gives its input one step later, and 0 before."""
    step = cell.steps[0]
    if len(cell.steps) != 1 or step.base != "gather" or step.inputs[0].index is not None:
        return False
    start: Any = cell.initial.get(("x", 0))
    return step.inputs[0].sources == [("x", 0, 1)] and (start is None or not bool(start.any()))


def _leaky(cell: Cell, shape: tuple[int, ...]) -> tuple[Tensor, Tensor] | None:
    """(decay, gain) if the cell computes v = decay * v + gain * x, else None."""
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
