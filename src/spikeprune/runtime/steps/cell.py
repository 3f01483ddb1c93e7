"""Steps that belong together because they read what they computed a step before: a neuron of any kind, a filter, a sum.

Sources of a step's inputs are ("x", k, d), input k of the cell d steps ago, and ("s", j, d), the result of step j.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from spikeprune.runtime.steps.steps import ELEMENTWISE, IMAGES, REDUCTIONS, Region, StepFunction, gathered, run

Source = tuple[str, int]
KNOWN = ELEMENTWISE | IMAGES | REDUCTIONS | {"linear", "affine", "matmul", "convolution", "gather", "constant"}


@dataclass
class Cell:
    """Steps in order, and the number of the step that is the result.

    Attributes:
        initial: source -> its value before the first time step. A source that is not named starts at 0.
    """

    steps: list[StepFunction]
    output: int
    initial: dict[Source, Tensor] = field(default_factory=dict[Source, Tensor])

    @property
    def delay(self) -> int:
        """How many steps the cell looks back."""
        return max((s[2] for step in self.steps for r in step.inputs for s in r.sources), default=0)


def run_cell(cell: Cell, sequences: Sequence[Iterable[Tensor]], everything: bool = False) -> Iterator[Any]:
    """The result at each time step for inputs given step by step; all steps' results if `everything`."""
    past: list[dict[Source, Tensor]] = []  # of the steps before, the latest one last; the present one is behind them
    kept = cell.delay
    for inputs in zip(*sequences, strict=True):
        past = past[len(past) - min(kept, len(past)) :]
        past.append({("x", k): x for k, x in enumerate(inputs)})
        for j, step in enumerate(cell.steps):
            values = [gathered(r, [_value(cell, s, past, inputs) for s in r.sources]) for r in step.inputs]
            past[-1]["s", j] = values[0] if step.base == "gather" else run(step, values)
        yield past[-1] if everything else past[-1]["s", cell.output]


def _value(cell: Cell, source: tuple[Any, ...], past: list[dict[Source, Tensor]], inputs: tuple[Tensor, ...]) -> Tensor:
    kind, number, delay = source
    if delay < len(past):
        return past[-1 - delay][kind, number]
    block = cell.steps[number].shape if kind == "s" else tuple(inputs[number].shape[1:])
    start = cell.initial.get((kind, number))
    like = inputs[0]
    return like.new_zeros(len(like), *block) if start is None else start.to(like.dtype).expand(len(like), *block)


def written(cell: Cell) -> tuple[str, dict[str, Tensor]]:
    """The cell as text and tensors, for a compiled file."""
    tensors: dict[str, Tensor] = {}

    def named(tensor: Tensor | None) -> str | None:
        if tensor is None:
            return None
        tensors[f"c{len(tensors)}"] = tensor
        return f"c{len(tensors) - 1}"

    steps = [
        {
            "name": s.name, "template": s.template, "shape": s.shape, "module": s.module, "keywords": s.keywords,
            "constants": [named(c) for c in s.constants],
            "inputs": [{"shape": r.shape, "sources": r.sources, "index": named(r.index)} for r in s.inputs],
        }
        for s in cell.steps
    ]  # fmt: skip
    initial = [[kind, number, named(value)] for (kind, number), value in cell.initial.items()]
    return json.dumps({"steps": steps, "output": cell.output, "initial": initial}), tensors


def read(text: str, tensors: dict[str, Tensor]) -> Cell:
    """The cell that `written` gave.

    Raises: ValueError, KeyError or TypeError for text of another form, or with a function that no cell has.
    """
    data = json.loads(text)
    steps: list[StepFunction] = []
    for s in data["steps"]:
        regions = [
            Region(
                tuple(r["shape"]), [tuple(x) for x in r["sources"]], None if r["index"] is None else tensors[r["index"]]
            )
            for r in s["inputs"]
        ]
        step = StepFunction(
            str(s["name"]), s["template"], regions, [tensors[c] for c in s["constants"]], tuple(s["shape"]),
            str(s["module"]), s["keywords"],
        )  # fmt: skip
        if step.base not in KNOWN:
            raise ValueError(f"no cell has the function {step.name[:40]!r}")
        steps.append(step)
    initial = {(str(k), int(n)): tensors[name] for k, n, name in data["initial"]}
    return Cell(steps, int(data["output"]), initial)


def double(cell: Cell) -> Cell:
    """The cell in float64."""
    steps = [replace(s, constants=[c.double() for c in s.constants]) for s in cell.steps]
    return Cell(steps, cell.output, {k: v.double() for k, v in cell.initial.items()})


__all__ = ["Cell", "Source", "double", "read", "run_cell", "written"]
