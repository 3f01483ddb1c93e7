"""A NIR graph under construction; each operation adds its own nodes (`Operation.export_nir`)."""

from typing import Any

import numpy as np
from torch import Tensor

from spikeprune.core.errors import InvalidValue
from spikeprune.runtime.compile.network import LoweredLayer, LoweredNetwork, channelwise


class NirGraph:
    """Nodes by name, and for each value the nodes whose sum it is.

    Attributes:
        dt: seconds of one time step, as SpikingJelly and snnTorch assume.
        binary: values that are 0 or 1. shapes: value -> shape of one image and step.
        sources: value -> names of the nodes whose sum it is.
    """

    dt = 1e-4

    def __init__(self, network: LoweredNetwork) -> None:
        self.network = network
        self.nodes: dict[str, Any] = {}
        self.edges: list[tuple[str, str]] = []
        self.sources: dict[int, list[str]] = {0: ["input"]}
        self.binary: set[int] = set()
        self.shapes = network.shapes()

    def build(self) -> Any:
        """The finished nir.NIRGraph.

        Raises: InvalidValue, naming the module, for what NIR cannot say.
        """
        import nir

        self.nodes["input"] = nir.Input({"input": np.array(self.network.input_shape)})
        for layer in self.network.layers:
            layer.op.export_nir(layer, self)
        self.nodes["output"] = nir.Output({"output": np.array(self.shapes[self.network.output])})
        self._join(self.sources[self.network.output], "output")
        return nir.NIRGraph(self.nodes, self.edges)

    def _join(self, sources: list[str], name: str) -> None:
        if len(set(sources)) < len(sources):
            raise InvalidValue(f"cannot export {name!r} to NIR: it adds a value to itself; scale the weights before it")
        self.edges += [(source, name) for source in sources]

    def node(self, layer: LoweredLayer, node: Any, suffix: str = "", source: int | None = None) -> None:
        """Adds a node that reads the layer's input (or the value `source`) and is the layer's result from now on."""
        name = (layer.name or layer.kind).replace(".", "_") + suffix
        while name in self.nodes:
            name += "_"
        self.nodes[name] = node
        self._join(self.sources[layer.inputs[0] if source is None else source], name)
        self.sources[layer.output] = [name]

    def refuse(self, layer: LoweredLayer, why: str) -> InvalidValue:
        """The error for a layer that NIR cannot say."""
        return InvalidValue(f"cannot export {layer.name!r} to NIR: {why}")

    def channel_matrix(self, layer: LoweredLayer, weight: Any, bias: Any) -> None:
        """A matrix over channels: NIR has no selection, and its Scale has no shift."""
        import nir

        if len(layer.shape) == 2:
            node = nir.Conv1d(layer.shape[1], weight[:, :, None], 1, 0, 1, 1, bias)
        elif len(layer.shape) > 3:
            raise self.refuse(layer, f"it scales channels of a block of {len(layer.shape)} axes")
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
