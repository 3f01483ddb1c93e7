"""Sum, mean, maximum over time, or the last step, as a readout takes it."""

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
class Reduce(Operation):
    """mean(0), sum(0), amax(0) or the last step of [T, N, ...]."""

    name = "reduce"
    reads = ("reduce",)
    keeps_static = False
    ends_time = True

    def lower(self, node: Node, to: "Lowering") -> bool:
        source = node.inputs[0]
        positional, keywords = node.arguments
        dim = keywords.get("dim", positional[1] if len(positional) > 1 else None)
        if dim not in (0, (0,)) or to.form[source] != "sequence" or keywords.get("keepdim"):
            raise to.refuse(node, "only the mean or sum over time, dim=0 of [T, N, ...], is supported")
        per_image = to.shape[to.value[source]]
        layer = LoweredLayer(self, node.name, (to.value[source],), 0, per_image, {"mode": node.name})
        to.value[node.index] = to.add(layer, static=True)
        to.form[node.index] = "image"
        return True

    def check(self, layer: LoweredLayer, inputs: list[Shape]) -> Shape:
        base.expect(layer, inputs, {"mode"}, set())
        if layer.options["mode"] not in ("sum", "mean", "amax", "last"):
            raise base.wrong(layer, f"its mode is {str(layer.options['mode'])[:40]}")
        return inputs[0]

    def compute(self, layer: LoweredLayer, values: list[Tensor], static: bool, T: int) -> Tensor:
        mode = layer.options["mode"]
        if mode in ("amax", "last"):
            return values[0] if static else values[0].amax(0) if mode == "amax" else values[0][-1]
        scale = 1.0 if layer.options["mode"] == "sum" else 1.0 / T
        return values[0] * (scale * T) if static else values[0].sum(0) * scale

    def export_nir(self, layer: LoweredLayer, graph: "NirGraph") -> None:
        if layer.output != graph.network.output and not _commutes(layer, graph):
            raise graph.refuse(
                layer, "what follows its reduction over time is not the same before it; let the model end with it"
            )
        graph.sources[layer.output] = graph.sources[layer.inputs[0]]


def _commutes(layer: LoweredLayer, graph: "NirGraph") -> bool:
    """Whether all layers behind a mean over time (a sum, without biases) may as well stand before it."""
    readers = graph.network.readers()
    front = [layer.output]
    while front:
        for place in readers.get(front.pop(), []):
            after = graph.network.layers[place]
            if after.kind not in ("linear", "affine", "flatten") or layer.options["mode"] not in ("mean", "sum"):
                return False
            bias = after.tensors.get("bias")
            if layer.options["mode"] == "sum" and bias is not None and bool((bias != 0).any()):
                return False
            front.append(after.output)
    return True
