"""The sum of two values of one shape, as at the end of a residual block."""

from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from spikeprune.model.trace import Node
from spikeprune.runtime.compile.network import LoweredLayer
from spikeprune.runtime.compile.ops import base
from spikeprune.runtime.compile.ops.base import Operation, Shape, register

if TYPE_CHECKING:
    from spikeprune.runtime.compile.builder import Builder
    from spikeprune.runtime.compile.lower import Lowering
    from spikeprune.runtime.nir_graph import NirGraph


@register
class Add(Operation):
    """The sum of two values of one shape. It runs inside the kernel that makes one of them, where there is one."""

    name = "add"
    reads = ("add",)

    def lower(self, node: Node, to: "Lowering") -> bool:
        forms = {to.form[i] for i in node.inputs}
        shapes = {to.shape[to.value[i]] for i in node.inputs}
        if len(node.inputs) != 2 or len(forms) != 1 or len(shapes) != 1 or to.graph.constants.get(node.index):
            raise to.refuse(node, "only the sum of two traced tensors of one shape is supported")
        to.put(node, self)
        return True

    def check(self, layer: LoweredLayer, inputs: list[Shape]) -> Shape:
        base.expect(layer, inputs, set(), set(), n=2)
        if inputs[0] != inputs[1]:
            raise base.wrong(layer, f"it adds {list(inputs[0])} and {list(inputs[1])}")
        return inputs[0]

    def compute(self, layer: LoweredLayer, values: list[Tensor], static: bool, T: int) -> Tensor:
        return values[0] + values[1]

    def residual(self, layer: LoweredLayer, value: int) -> int | None:
        return next((v for v in layer.inputs if v != value), None)

    def place(self, place: int, layer: LoweredLayer, builder: "Builder") -> bool:
        if any(v in builder.static for v in layer.inputs):
            return False
        one = np.ones(layer.shape[0], np.float32)
        return builder.pointwise(place, layer, {"scale": one, "bias": 0 * one}, residual=layer.inputs[1])

    def export_nir(self, layer: LoweredLayer, graph: "NirGraph") -> None:
        graph.sources[layer.output] = [name for value in layer.inputs for name in graph.sources[value]]
