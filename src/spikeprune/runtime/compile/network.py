"""The compiled network's own form: a flat list of layers with folded weights.

Values are numbered; value 0 is the input. A value is static (the same at every step, [N, ...]) or a sequence
[T, N, ...]. The file of an operation (`ops/`) defines what a layer of that kind computes.

T time steps, N batch, C channels, H/W space.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from spikeprune.runtime.compile.ops.base import Operation

Option = int | float | bool | str | None | tuple[int, ...]
TILE = 16  # positions that stand for a tile in `busyness`; the kernels' own is 8 to 32


@dataclass
class LoweredLayer:
    """One operation on numbered values.

    Attributes:
        op: the operation, from `ops/`.
        name: the module's name as in `named_modules`.
        inputs: numbers of the values read; `output` of the value written.
        shape: shape of the output of one image and step, (C, H, W) or (features,).
        options: plain settings (stride, padding, ...).
        tensors: weights and per-channel vectors.
    """

    op: "Operation"
    name: str
    inputs: tuple[int, ...]
    output: int
    shape: tuple[int, ...]
    options: dict[str, Option] = field(default_factory=dict[str, Option])
    tensors: dict[str, Tensor] = field(default_factory=dict[str, Tensor])

    @property
    def kind(self) -> str:
        """The operation's name, as in compiled files and plans."""
        return self.op.name


@dataclass(frozen=True)
class Layout:
    """The positions of the axes of the model's input and output.

    Attributes:
        input, output: (axis of T, axis of N) of a sequence.
        fixed: whether T must be that of the example, because the model holds numbers that depend on it.
    """

    input: tuple[int, int] = (0, 1)
    output: tuple[int, int] = (0, 1)
    fixed: bool = False

    def inside(self, x: Tensor) -> Tensor:
        """Moves the axes of a model's input to [T, N, ...], the order in which the layers take it."""
        return x if self.input == (0, 1) else x.movedim(self.input, (0, 1))

    def said(self, shape: str) -> str:
        """The axes of an input in words; `shape` is that of one image and step."""
        names = shape.split(", ")
        for axis, name in sorted(zip(self.input, "TN", strict=True)):
            names.insert(axis, name)
        return ", ".join(names)

    def outside(self, y: Tensor) -> Tensor:
        """A sequence [T, N, ...] as the model returns it."""
        return y if self.output == (0, 1) else y.movedim((0, 1), self.output)


@dataclass
class LoweredNetwork:
    """Layers in order of execution; `T` is how often a still image is shown, `still` whether one may be given.

    `busy`: of a value that holds spikes or means of them, the share of channels in a tile that are not silent on the
    example, and of those that reach 4 spikes in a window; the cost of layers driven by spikes depends on it.
    """

    layers: list[LoweredLayer]
    output: int
    input_shape: tuple[int, ...]
    T: int
    still: bool
    busy: dict[int, tuple[float, float]] = field(default_factory=dict[int, tuple[float, float]])
    layout: Layout = field(default_factory=lambda: Layout())

    def measure(self, values: Mapping[int, Tensor], still: bool) -> None:
        """Notes how busy spikes are, from all values that an example gives."""
        static = self.static(still)
        for layer in self.layers:
            if layer.op.sparse_result and values[layer.output].dim() > 2 and layer.output not in static:
                self.busy[layer.output] = busyness(values[layer.output])

    def readers(self) -> dict[int, list[int]]:
        """Number of a value -> places (indices in `layers`) of the layers that read it."""
        table: dict[int, list[int]] = {0: []}
        for place, layer in enumerate(self.layers):
            table.setdefault(layer.output, [])
            for value in layer.inputs:
                table.setdefault(value, []).append(place)
        return table

    def static(self, still: bool) -> set[int]:
        """Values without a time axis: all that a still image reaches before a neuron, and what follows a readout."""
        found: set[int] = {0} if still else set()
        for layer in self.layers:
            if layer.op.ends_time or (layer.op.keeps_static and all(value in found for value in layer.inputs)):
                found.add(layer.output)
        return found

    def returned(self, values: Mapping[int, Tensor], still: bool) -> Tensor:
        """The output among all values, with its axes as the model returns them."""
        output = values[self.output]
        if self.layout.output == (0, 1) or self.output in self.static(still):
            return output
        return self.layout.outside(output)

    def shapes(self) -> dict[int, tuple[int, ...]]:
        """Value -> shape of one image and step."""
        return {0: self.input_shape} | {layer.output: layer.shape for layer in self.layers}

    def reshaped(self) -> dict[int, int]:
        """Maps each value that is only a reshaped view of another value to that other value."""
        return {layer.output: layer.inputs[0] for layer in self.layers if layer.op.reshapes}


def interpret(network: LoweredNetwork, x: Tensor, still: bool) -> dict[int, Tensor]:
    """All values of the network for the input x (an image batch if `still`, else a sequence), in PyTorch alone."""
    T = network.T if still else len(x)
    static = network.static(still)
    values = {0: x}
    for layer in network.layers:
        inputs = [values[value] for value in layer.inputs]
        values[layer.output] = layer.op.compute(layer, inputs, all(v in static for v in layer.inputs), T)
    return values


def busyness(x: Tensor) -> tuple[float, float]:
    """Two shares of the (channel, tile) pairs of x [T, N, C, ...]: those above 0, and those that reach 1."""
    flat = x.flatten(3) if x.dim() > 3 else x.unsqueeze(-1)
    top = flat.amax(0)  # a column holds all steps of a word
    top = F.pad(top, (0, -top.shape[-1] % TILE)).unflatten(-1, (-1, TILE)).amax(-1)
    return float((top > 0).float().mean()), float((top >= 1).float().mean())


def channelwise(vector: Tensor, dims: int) -> Tensor:
    """A [C] vector as it broadcasts against [..., C, H, W] (dims = 3) or [..., features] (dims = 1)."""
    return vector.view(-1, *[1] * (dims - 1))


def spatial(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(C, H, W) of a value; features stand on a map of one position."""
    return shape if len(shape) == 3 else (shape[0], 1, 1)  # pyright: ignore[reportReturnType]
