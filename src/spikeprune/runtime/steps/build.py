"""The graph of one time step as layers of the compiled engine, NIR and ONNX."""

from dataclasses import replace

import torch
from torch import Tensor

from spikeprune.runtime.compile.network import LoweredLayer, LoweredNetwork, Option
from spikeprune.runtime.compile.ops import operation
from spikeprune.runtime.steps.cell import Cell, Source, written
from spikeprune.runtime.steps.identify import normal_form
from spikeprune.runtime.steps.kinds import by_channel, components, pooling, scaling, two
from spikeprune.runtime.steps.roll import Key, Rolled
from spikeprune.runtime.steps.steps import Region, StepFunction


class LayerMaker:
    """Makes the layers.

    Attributes:
        value: key of a step -> number of its value. cells: layer's output -> the cell that it was made of.
    """

    def __init__(self, rolled: Rolled, constants: dict[int, Tensor]) -> None:
        self.rolled, self.constants = rolled, constants
        self.layers: list[LoweredLayer] = []
        self.value: dict[Key, int] = {}
        self.shapes: dict[int, tuple[int, ...]] = {}
        self.cells: dict[int, tuple[Cell, list[int]]] = {}
        self.of: dict[int, Key] = {}
        self._ended: set[Key] = set()
        self.sums: dict[Key, int] = {}  # a running sum that only its end is read of -> what is summed
        self._sequences: dict[Key, int] = {}

    def network(self, T: int) -> LoweredNetwork:
        """All layers, in order."""
        rolled = self.rolled
        source = next(k for k, s in rolled.steps.items() if s.name == "input")
        self.value[source] = 0
        self.shapes[0] = rolled.steps[source].shape
        edges = {
            key: [s[1] for r in step.inputs for s in r.sources if s[0] == "n"] for key, step in rolled.steps.items()
        }
        wanted = self._wanted()
        for part in components(edges):
            if part == [source]:
                continue
            step = rolled.steps[part[0]]
            remembers = any(s[2] for r in step.inputs for s in r.sources)
            if len(part) == 1 and not remembers:
                self._single(part[0], step)
            else:
                self._cell(part, wanted)
        if rolled.sequence:
            output = self._region(rolled.output)
        else:
            output = self._tail(rolled.output)
        return LoweredNetwork(self.layers, output, self.shapes[0], T, still=False)

    def _wanted(self) -> set[tuple[Key, Key | None]]:
        """(step, who reads it); None for what follows the last time step."""
        rolled = self.rolled
        found: set[tuple[Key, Key | None]] = {
            (s[1], key) for key, step in rolled.steps.items() for r in step.inputs for s in r.sources if s[0] == "n"
        }
        regions = [rolled.output, *(r for step in rolled.tail.values() for r in step.inputs)]
        found.update((s[1], None) for r in regions for s in r.sources if s[0] == "n")
        return found

    # -- layers ------------------------------------------------------------------------------------------------------

    def _put(
        self, kind: str, name: str, inputs: list[int], shape: tuple[int, ...], options: dict[str, Option] | None = None,
        **tensors: Tensor,
    ) -> int:  # fmt: skip
        number = len(self.shapes)
        layer = LoweredLayer(
            operation(kind), name, tuple(inputs), number, tuple(shape), options or {},
            {key: value.detach().cpu().clone().contiguous() for key, value in tensors.items()},
        )  # fmt: skip
        self.layers.append(layer)
        self.shapes[number] = layer.shape
        return number

    def _program(self, cell: Cell, name: str, inputs: list[int], stateless: bool) -> int:
        text, tensors = written(cell)
        ranks = tuple(len(self.shapes[v]) for v in inputs)
        number = self._put(
            "function" if stateless else "cell", name, inputs, cell.steps[cell.output].shape,
            {"program": text, "ranks": ranks}, **tensors,
        )  # fmt: skip
        self.cells[number] = (cell, inputs)
        return number

    def _known(self, region: Region) -> int | None:
        """The number of the value that a region is a whole copy of, else None."""
        if len(region.sources) == 1 and region.index is None and region.sources[0][0] == "n":
            number = self.value[region.sources[0][1]]
            if self.shapes[number] == tuple(region.shape):
                return number
        return None

    def _region(self, region: Region, name: str = "") -> int:
        """The number of a region's value; a layer that gathers it is made where needed."""
        known = self._known(region)
        if known is not None:
            return known
        if len(region.sources) == 1 and region.index is None and region.sources[0][0] == "n" and len(region.shape) == 1:
            return self._put("flatten", name or "flatten", [self.value[region.sources[0][1]]], region.shape)
        gather = StepFunction("gather", [], [region], [], tuple(region.shape), name or "gather")
        return self._step(gather)

    def _step(self, step: StepFunction) -> int:
        cell, inputs = self._made([(-1, step)])
        return self._program(replace(cell, output=len(cell.steps) - 1), step.module or step.base, inputs, True)

    def _made(self, steps: list[tuple[Key, StepFunction]]) -> tuple[Cell, list[int]]:
        """Makes a cell of these steps, in order. Returns it with the values that it reads."""
        inputs: list[int] = []
        made: list[StepFunction] = []
        places: dict[Key, int] = {}
        extra: dict[int, int] = {}
        constants = sorted({s[1] for _, step in steps for r in step.inputs for s in r.sources if s[0] == "k"})
        for number in constants:
            value = self.constants[number].float()
            extra[number] = len(made)
            made.append(StepFunction("constant", [], [], [value], tuple(value.shape) or (1,)))
            made[-1].constants = [value.view(made[-1].shape)]
        for offset, (key, _) in enumerate(steps):
            places[key] = len(made) + offset
        for _, step in steps:
            regions: list[Region] = []
            for region in step.inputs:
                sources: list[tuple[str, int, int]] = []
                for kind, what, delay in region.sources:
                    if kind == "k":
                        sources.append(("s", extra[what], 0))
                    elif what in places:
                        sources.append(("s", places[what], delay))
                    else:
                        number = self.value[what]
                        if number not in inputs:
                            inputs.append(number)
                        sources.append(("x", inputs.index(number), delay))
                regions.append(Region(tuple(region.shape), sources, region.index))
            made.append(replace(step, inputs=regions))
        initial: dict[Source, Tensor] = {}
        for key, value in self.rolled.initial.items():
            if key in places:
                initial["s", places[key]] = value
            elif key in self.value and self.value[key] in inputs:
                initial["x", inputs.index(self.value[key])] = value
        read = {s[:2] for step in made for r in step.inputs for s in r.sources if s[2]}
        return Cell(made, 0, {k: v for k, v in initial.items() if k in read}), inputs

    def _cell(self, part: list[Key], wanted: set[tuple[Key, Key | None]]) -> None:
        steps = self.rolled.steps
        own = set(part)
        order = self._ordered(part)
        cell, inputs = self._prompt(*self._made([(key, steps[key]) for key in order]), self._name(part))
        base = len(cell.steps) - len(order)
        outputs = [key for key in order if any(k == key and reader not in own for k, reader in wanted)]
        for key in outputs:
            place = base + order.index(key)
            fired = replace(cell, output=place)
            if self._is_sum(fired, key, wanted):
                self.sums[key] = inputs[0]
                self.value[key] = inputs[0]
                continue
            name = self._name(part)
            normal = normal_form(fired, self.shapes[inputs[0]]) if len(inputs) == 1 else None
            channels = (
                None if normal is None else [by_channel(getattr(normal, n), self.shapes[inputs[0]]) for n in _NUMBERS]
            )
            if normal is not None and channels is not None and all(c is not None for c in channels):
                vectors = {n: c for n, c in zip(_NUMBERS, channels, strict=True) if c is not None}
                self.value[key] = self._put(
                    "neuron", name, inputs, self.shapes[inputs[0]], {"soft": normal.soft, "strict": normal.strict},
                    start=torch.zeros_like(vectors["decay"]), **vectors,
                )  # fmt: skip
                self.cells[self.value[key]] = (fired, inputs)
            else:
                self.value[key] = self._program(fired, name, inputs, False)
            self.of[self.value[key]] = key

    def _prompt(self, cell: Cell, inputs: list[int], name: str) -> tuple[Cell, list[int]]:
        """Moves a delay of one step out of a cell: a new layer before it delays the input, and the cell no longer does.

        Only a cell whose one input is read a step late everywhere is changed; another is returned as it is.
        """
        delays = {s[2] for step in cell.steps for r in step.inputs for s in r.sources if s[0] == "x"}
        if len(inputs) != 1 or delays != {1}:
            return cell, inputs
        late = StepFunction(
            "gather", [], [Region(self.shapes[inputs[0]], [("x", 0, 1)])], [], self.shapes[inputs[0]], name
        )
        start = {source: value for source, value in cell.initial.items() if source[0] == "x"}
        number = self._program(Cell([late], 0, start), name, inputs, False)
        steps = [
            replace(
                step,
                inputs=[
                    replace(r, sources=[(s[0], s[1], 0) if s[0] == "x" else s for s in r.sources]) for r in step.inputs
                ],
            )
            for step in cell.steps
        ]
        own = {source: value for source, value in cell.initial.items() if source[0] == "s"}
        return Cell(steps, cell.output, own), [number]

    def _is_sum(self, cell: Cell, key: Key, wanted: set[tuple[Key, Key | None]]) -> bool:
        """Whether a cell adds up its input over time, from 0, and is read after the last step alone."""
        if len(cell.steps) != 1 or self.rolled.sequence or any(k == key and r not in (None, key) for k, r in wanted):
            return False
        step = cell.steps[0]
        sources = sorted(s for r in step.inputs for s in r.sources)
        plain = step.base == "add" and len(step.template) == 2 and not step.keywords and not step.constants
        whole = all(r.index is None and r.shape == step.shape for r in step.inputs)
        start = next(iter(cell.initial.values()), None)
        zero = start is None or not bool(start.any())
        timed = any(
            s.name.startswith("time_") and any(x[1] == key for r in s.inputs for x in r.sources)
            for s in self.rolled.tail.values()
        )
        return plain and whole and zero and not timed and sources == [("s", 0, 1), ("x", 0, 0)]

    def _name(self, part: list[Key]) -> str:
        """The module that holds most of the steps."""
        names = [self.rolled.steps[key].module for key in part]
        name = max(sorted(set(names)), key=names.count)
        return name or "neuron"

    def _ordered(self, part: list[Key]) -> list[Key]:
        own, done = set(part), list[Key]()
        seen: set[Key] = set()
        for start in sorted(part):
            work = [(start, False)]
            while work:
                key, ready = work.pop()
                if ready:
                    done.append(key)
                    continue
                if key in seen:
                    continue
                seen.add(key)
                work.append((key, True))
                for r in self.rolled.steps[key].inputs:
                    work += [(s[1], False) for s in r.sources if s[0] == "n" and s[2] == 0 and s[1] in own]
        return done

    def _single(self, key: Key, step: StepFunction) -> None:
        self.value[key] = self._layer(step)
        self.of[self.value[key]] = key

    def _layer(self, step: StepFunction) -> int:
        name = step.module or step.base
        if step.base == "linear" and len(step.inputs[0].shape) == 1:
            weight = step.constants[0]
            bias = step.constants[1] if len(step.constants) > 1 else torch.zeros(len(weight))
            return self._put("linear", name, [self._region(step.inputs[0], name)], step.shape, weight=weight, bias=bias)
        if step.base == "convolution" and len(step.shape) == 3 and not step.template[3]:
            stride, padding, dilation, _, _, groups = step.template
            weight = step.constants[0]
            bias = step.constants[1] if len(step.constants) > 1 else torch.zeros(len(weight))
            options: dict[str, Option] = {
                "stride": two(stride), "padding": two(padding), "dilation": two(dilation), "groups": groups,
            }  # fmt: skip
            source = self._region(step.inputs[0], name)
            return self._put("conv", name, [source], step.shape, options, weight=weight, bias=bias)
        scaled = scaling(step)
        if scaled is not None and step.inputs[0].shape == step.shape:
            source = self._region(step.inputs[0], name)
            if bool((scaled[0] == 1).all()) and not bool(scaled[1].any()):
                return source
            return self._put("affine", name, [source], step.shape, scale=scaled[0], bias=scaled[1])
        pooled = pooling(step)
        if pooled is not None:
            return self._put("pool", name, [self._region(step.inputs[0], name)], step.shape, pooled)
        whole = all(tuple(r.shape) == tuple(step.shape) for r in step.inputs)
        if step.base == "add" and len(step.inputs) == 2 and not step.keywords and len(step.template) == 2 and whole:
            return self._put("add", name, [self._region(r, name) for r in step.inputs], step.shape)
        if step.base == "mean" and step.template == [[1, 2]] and len(step.inputs[0].shape) == 3:
            source = self._region(step.inputs[0], name)
            pooled = self._put("pool", name, [source], (step.shape[0], 1, 1), {"mode": "adaptive", "size": (1, 1)})
            return self._put("flatten", name, [pooled], (step.shape[0],))
        return self._step(step)

    # -- after the last time step ------------------------------------------------------------------------------------

    def _tail(self, region: Region) -> int:
        self._sequences = dict(self.value)
        for kind, key, _ in region.sources:
            if kind == "n":
                self._last(key)
        return self._region(region, "output")

    def _last(self, key: Key) -> None:
        """Makes `self.value[key]` a value after the last step."""
        if key in self._ended:
            return
        step = self.rolled.tail.get(key)
        if step is None:
            mode, number = ("sum", self.sums[key]) if key in self.sums else ("last", self.value[key])
            self.value[key] = self._end(mode, number, self.rolled.steps[key].module)
        elif step.name.startswith("time_"):
            now, self.value = self.value, dict(self._sequences)  # whole sequences, not their last steps
            number = self._region(step.inputs[0], step.module)
            self.value = now
            ended = self._end(step.name.removeprefix("time_"), number, step.module)
            dims = step.template[0]
            if dims:
                reduced = StepFunction(
                    step.name.removeprefix("time_"),
                    [dims],
                    [Region(self.shapes[ended], [("n", -2, 0)])],
                    [],
                    step.shape,
                )
                self.value[-2] = ended
                ended = self._step(reduced)
            self.value[key] = ended
        else:
            for r in step.inputs:
                for kind, other, _ in r.sources:
                    if kind == "n":
                        self._last(other)
            self.value[key] = self._layer(step)
        self._ended.add(key)

    def _end(self, mode: str, number: int, name: str) -> int:
        return self._put("reduce", name or mode, [number], self.shapes[number], {"mode": mode})


_NUMBERS = ("decay", "gain", "shift", "threshold", "reset")
