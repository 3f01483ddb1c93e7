"""Selection of channels: a gate over channels, or index_select along the channel axis."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from spikeprune.model.operations import is_gate
from spikeprune.model.trace import Node
from spikeprune.runtime.compile.network import LoweredLayer
from spikeprune.runtime.compile.ops import base
from spikeprune.runtime.compile.ops.base import Operation, Shape, register

if TYPE_CHECKING:
    from spikeprune.runtime.compile.builder import Builder
    from spikeprune.runtime.compile.lower import Lowering
    from spikeprune.runtime.nir_graph import NirGraph


@register
class Select(Operation):
    """A selection of channels by a gate or `index_select`. It becomes part of the layer before it where it can."""

    name = "select"
    reads = ("select", "other")

    def lower(self, node: Node, to: "Lowering") -> bool:
        source = node.inputs[0]
        per_image = to.shape[to.value[source]]
        if node.kind == "select":
            index = getattr(node.module, "index", None)
            if not is_gate(node.module) or not isinstance(index, Tensor):
                raise to.refuse(node, "only channel gates select")
            if len(index) == per_image[0]:
                to.same(node)
                return True
        else:
            constants = to.graph.constants.get(node.index, [])
            if len(node.inputs) != 1 or node.name != "index_select" or len(constants) != 1:
                return False
            dim = next((a for a in node.arguments[0] if isinstance(a, int)), node.arguments[1].get("dim"))
            if dim not in (2 if to.form[source] == "sequence" else 1, -len(per_image)):
                return False
            index = constants[0]
        to.put(node, self, {}, index=index.long())
        return True

    def check(self, layer: LoweredLayer, inputs: list[Shape]) -> Shape:
        base.expect(layer, inputs, set(), {"index"})
        index = base.check_tensor(layer, "index", None, dtype=torch.int64)
        if int(index.min()) < 0 or int(index.max()) >= inputs[0][0]:
            raise base.wrong(layer, f"its index names channels beyond the {inputs[0][0]} there are")
        return len(index), *inputs[0][1:]

    def selection(self, layer: LoweredLayer) -> Tensor:
        return layer.tensors["index"]

    def compute(self, layer: LoweredLayer, values: list[Tensor], static: bool, T: int) -> Tensor:
        return values[0].index_select(1 if static else 2, layer.tensors["index"])

    def place(self, place: int, layer: LoweredLayer, builder: "Builder") -> bool:
        one = np.ones(layer.shape[0], np.float32)
        index = layer.tensors["index"].numpy().astype(np.int32)
        return builder.pointwise(place, layer, {"scale": one, "bias": 0 * one, "map": index})

    def export_nir(self, layer: LoweredLayer, graph: "NirGraph") -> None:
        weight = np.eye(graph.shapes[layer.inputs[0]][0], dtype=np.float32)[graph.numpy(layer.tensors["index"])]
        graph.channel_matrix(layer, weight, np.zeros(len(weight), dtype=np.float32))
