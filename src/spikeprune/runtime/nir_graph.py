"""A NIR graph under construction; each operation adds its own nodes (`Operation.export_nir`)."""

import math
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spikeprune.core.errors import InvalidValue
from spikeprune.runtime.compile.network import LoweredLayer, LoweredNetwork, channelwise
from spikeprune.runtime.nir_linear import LARGEST, Matrices, any_of, is_mean, matrices, over_channels, size_of


class NirGraph:
    """Nodes by name, and for each value the nodes whose sum it is.

    Attributes:
        dt: seconds of one time step, as SpikingJelly and snnTorch assume.
        binary: values that are 0 or 1. shapes: value -> shape of one image and step.
        sources: value -> names of the nodes whose sum it is.
        flat: values of several axes that are one axis in the graph, behind a matrix over whole images.
    """

    dt = 1e-4

    def __init__(self, network: LoweredNetwork) -> None:
        self.network = network
        self.nodes: dict[str, Any] = {}
        self.edges: list[tuple[str, str]] = []
        self.sources: dict[int, list[str]] = {0: ["input"]}
        self.binary: set[int] = set()
        self.flat: set[int] = set()
        self._flattened: dict[int, list[str]] = {}
        self._flattening = False
        self.shapes = network.shapes()

    def build(self) -> Any:
        """The finished nir.NIRGraph.

        Raises: InvalidValue, naming the module, for what NIR cannot say.
        """
        import nir

        self.nodes["input"] = nir.Input({"input": np.array(self.network.input_shape)})
        for layer in self.network.layers:
            if any(value in self.flat for value in layer.inputs):
                self._add_flat(layer)
            else:
                self._add(layer)
        if self.network.output in self.flat:
            last = next(layer for layer in self.network.layers if layer.output == self.network.output)
            why = "it stands behind a matrix over whole images, and NIR has no node that gives its result several axes"
            raise self.refuse(last, f"{why} again; let the model return it flattened")
        self.nodes["output"] = nir.Output({"output": np.array(self.shapes[self.network.output])})
        self._join(self.sources[self.network.output], "output")
        try:
            return nir.NIRGraph(self.nodes, self.edges)
        except ValueError as error:
            said = " ".join(str(error).split())[:160]
            raise InvalidValue(f"the package nir refuses the graph that was made for this network: {said}") from error

    def _add(self, layer: LoweredLayer) -> None:
        """Adds a layer as the node that NIR has for it, else as matrices."""
        try:
            layer.op.export_nir(layer, self)
        except InvalidValue:
            if not self._as_matrices(layer):
                raise

    def _add_flat(self, layer: LoweredLayer) -> None:
        """A layer that reads a flat value."""
        kind = layer.kind
        if kind in ("reduce", "repeat", "flatten", "add"):
            sources = [name for value in layer.inputs for name in self._flat_sources(value)]
            if kind == "reduce":
                layer.op.export_nir(layer, self)  # it refuses what it must
            self.sources[layer.output] = sources
            if kind == "flatten" and layer.inputs[0] in self.binary:
                self.binary.add(layer.output)
        elif kind == "neuron" or not self._as_matrices(layer):
            if kind not in ("neuron", "cell"):
                largest = size_of(layer, [self.shapes[value] for value in layer.inputs])
                raise self.refuse(
                    layer, f"it stands behind a matrix over whole images, and is none itself of at most {LARGEST:,} "
                    f"numbers ({largest:,})"
                )  # fmt: skip
            self._flattening = True
            try:
                layer.op.export_nir(layer, self)
            finally:
                self._flattening = False
        if len(layer.shape) > 1:
            self.flat.add(layer.output)

    def _flat_sources(self, value: int) -> list[str]:
        """The nodes whose sum is the value in one axis."""
        import nir

        if value in self.flat or len(self.shapes[value]) == 1:
            return self.sources[value]
        if value not in self._flattened:
            name = self._free(f"{'_'.join(self.sources[value])}_flat"[:80])
            self.nodes[name] = nir.Flatten({"input": np.array(self.shapes[value])}, start_dim=0, end_dim=-1)
            self._join(self.sources[value], name)
            self._flattened[value] = [name]
        return self._flattened[value]

    def _free(self, name: str) -> str:
        while name in self.nodes:
            name += "_"
        return name

    def _as_matrices(self, layer: LoweredLayer) -> bool:
        """Adds a layer that is a sum of matrix products, or a maximum of spikes; False if it is neither."""
        import nir

        shapes = [self.shapes[value] for value in layer.inputs]
        found = matrices(layer, shapes)
        if found is None:
            anyone = any_of(layer, shapes[0]) if len(shapes) == 1 and layer.inputs[0] in self.binary else None
            if anyone is None:
                return False
            self._matrix(layer, 0, anyone, torch.zeros(len(anyone)))
            name = self._free(f"{self.sources[layer.output][0]}_any")
            self.nodes[name] = nir.Threshold(np.full(len(anyone), 0.5))
            self._join(self.sources[layer.output], name)
            self.sources[layer.output] = [name]
            self.binary.add(layer.output)
            return True
        if not self._structured(layer, shapes, found):
            names: list[str] = []
            for k, weight in enumerate(found.weights):
                self._matrix(layer, k, weight, found.shift * (k == 0))
                names += self.sources[layer.output]
            self.sources[layer.output] = names
        if self._only_moves(layer, found):
            self.binary.add(layer.output)
        return True

    def _only_moves(self, layer: LoweredLayer, found: Matrices) -> bool:
        """Whether each result is one of the inputs' spikes, or 0."""
        rows = torch.cat(found.weights, 1)
        moved = bool(((rows == 0) | (rows == 1)).all() and (rows.sum(1) <= 1).all() and (found.shift == 0).all())
        return moved and all(value in self.binary for value in layer.inputs)

    def _structured(self, layer: LoweredLayer, shapes: list[tuple[int, ...]], found: Matrices) -> bool:
        """Adds a mean over maps, or a mixture of channels as in a concatenation, as nodes that keep the axes of a map.

        Returns: False if the layer is neither of them; then nothing is added.
        """
        import nir

        if any(value in self.flat for value in layer.inputs):
            return False
        if len(shapes) == 1 and is_mean(found.weights[0], shapes[0], layer.shape) and not bool(found.shift.any()):
            channels, *area = shapes[0]
            size = np.array(area)
            self.node(layer, nir.AvgPool2d(size, size, np.zeros_like(size)))
            if len(layer.shape) == 1:
                pooled = np.array((channels, 1, 1))
                self.node(layer, nir.Flatten({"input": pooled}, start_dim=0, end_dim=-1), "_flat", source=layer.output)
            return True
        mixed = [over_channels(w, shape, layer.shape) for w, shape in zip(found.weights, shapes, strict=True)]
        if len(layer.shape) > 3 or any(m is None for m in mixed):
            return False
        shift = found.shift.view(len(found.shift) // math.prod(layer.shape[1:]), -1)
        if bool((shift != shift[:, :1]).any()):
            return False
        names: list[str] = []
        for k, (value, m) in enumerate(zip(layer.inputs, mixed, strict=True)):
            assert m is not None
            one = replace(layer, inputs=(value,), name=f"{layer.name or layer.kind}.{k}" if k else layer.name)
            self.channel_matrix(one, self.numpy(m.float()), self.numpy(shift[:, 0].float() * (k == 0)))
            names += self.sources[layer.output]
        self.sources[layer.output] = names
        return True

    def _matrix(self, layer: LoweredLayer, k: int, weight: Tensor, shift: Tensor) -> None:
        import nir

        name = self._free((layer.name or layer.kind).replace(".", "_") + (f"_{k}" if k else ""))
        self._join(self._flat_sources(layer.inputs[k]), name)
        self.nodes[name] = nir.Affine(self.numpy(weight.float()), self.numpy(shift.float()))
        self.sources[layer.output] = [name]
        if len(layer.shape) > 1:
            self.flat.add(layer.output)

    def _join(self, sources: list[str], name: str) -> None:
        if len(set(sources)) < len(sources):
            raise InvalidValue(f"cannot export {name!r} to NIR: it adds a value to itself; multiply it by 2 instead")
        self.edges += [(source, name) for source in sources]

    def node(self, layer: LoweredLayer, node: Any, suffix: str = "", source: int | None = None) -> None:
        """Adds a node that reads the layer's input (or the value `source`) and is the layer's result from now on."""
        name = self._free((layer.name or layer.kind).replace(".", "_") + suffix)
        inferred = node.output_type.get("output")
        made = [int(size) for size in (layer.shape if inferred is None else inferred)]
        if math.prod(made) != math.prod(layer.shape):  # a version of the package that counts otherwise
            raise self.refuse(
                layer, f"the package nir takes its result for one of shape {made}, not {list(layer.shape)}"
            )
        self._join(self.sources[layer.inputs[0] if source is None else source], name)
        self.nodes[name] = _in_one_axis(node, layer.shape) if self._flattening else node
        self.sources[layer.output] = [name]

    def refuse(self, layer: LoweredLayer, why: str) -> InvalidValue:
        """The error for a layer that NIR has no nodes for."""
        return InvalidValue(f"cannot export {layer.name!r} to NIR: {why}")

    def channel_matrix(self, layer: LoweredLayer, weight: Any, bias: Any) -> None:
        """Adds a node that multiplies the channels with a matrix and adds a bias, as Conv1d, Conv2d or Affine.

        It stands for a selection or a shift of channels: NIR has no selection, and its Scale has no shift.
        Raises: InvalidValue for maps of more than two axes.
        """
        import nir

        if len(layer.shape) == 2:
            node = nir.Conv1d(layer.shape[1], weight[:, :, None], 1, 0, 1, 1, bias)
        elif len(layer.shape) > 3:
            raise self.refuse(
                layer, f"NIR has no node that scales the channels of maps with {len(layer.shape) - 1} axes"
            )
        elif len(layer.shape) > 1:
            node = nir.Conv2d(self.space(layer.shape), weight[:, :, None, None], (1, 1), (0, 0), (1, 1), 1, bias)
        else:
            node = nir.Affine(weight, bias)
        self.node(layer, node)

    def each(self, vector: Tensor, shape: tuple[int, ...]) -> Any:
        """One number for each neuron, from one for each channel."""
        return self.numpy(channelwise(vector.double(), len(shape)).expand(shape))

    @staticmethod
    def space(shape: tuple[int, ...]) -> tuple[int, int]:
        """Height and width of a map."""
        return shape[1], shape[2]

    @staticmethod
    def numpy(tensor: Tensor) -> Any:
        """The tensor as NIR takes it."""
        return tensor.detach().cpu().contiguous().numpy()


def _in_one_axis(node: Any, shape: tuple[int, ...]) -> Any:
    """A node that works value by value, for values in one axis."""
    given = {f.name: getattr(node, f.name) for f in fields(node) if f.name not in ("input_type", "output_type")}
    flat = {k: v.reshape(-1) if isinstance(v, np.ndarray) and v.shape == shape else v for k, v in given.items()}
    return type(node)(**flat)


def ungrouped(weight: Tensor, groups: int) -> Tensor:
    """The weight of a grouped convolution as that of a plain one: the package nir reads I from a weight [O, I, ...]."""
    if groups == 1:
        return weight
    outputs, inputs = len(weight) // groups, weight.shape[1]
    whole = weight.new_zeros(len(weight), groups * inputs, *weight.shape[2:])
    for g in range(groups):
        rows, columns = slice(g * outputs, (g + 1) * outputs), slice(g * inputs, (g + 1) * inputs)
        whole[rows, columns] = weight[rows]
    return whole
