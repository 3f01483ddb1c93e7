"""An image that is shown at every one of T steps, where the model writes that down."""

from typing import TYPE_CHECKING

from torch import Tensor

from spikeprune.model.trace import Node
from spikeprune.runtime.compile.network import LoweredLayer
from spikeprune.runtime.compile.ops import base
from spikeprune.runtime.compile.ops.base import Operation, Shape, register

if TYPE_CHECKING:
    from spikeprune.runtime.compile.lower import Lowering
    from spikeprune.runtime.nir_graph import NirGraph


@register
class Repeat(Operation):
    """A layer only where the output itself is such an image; everywhere else it stays one step."""

    name = "repeat"
    reads = ("stack",)
    keeps_static = False

    def lower(self, node: Node, to: "Lowering") -> bool:
        source = node.inputs[0]
        if set(node.inputs) != {source} or not to.static[to.value[source]] or node.arguments[0][1:] not in ((), (0,)):
            raise to.refuse(node, "only an image stacked T times is supported")
        to.same(node, "sequence")
        return True

    def check(self, layer: LoweredLayer, inputs: list[Shape]) -> Shape:
        base.expect(layer, inputs, set(), set())
        return inputs[0]

    def compute(self, layer: LoweredLayer, values: list[Tensor], static: bool, T: int) -> Tensor:
        return values[0].expand(T, *values[0].shape) if static else values[0]

    def export_nir(self, layer: LoweredLayer, graph: "NirGraph") -> None:
        graph.sources[layer.output] = graph.sources[layer.inputs[0]]
