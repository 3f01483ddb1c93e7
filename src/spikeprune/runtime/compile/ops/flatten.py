"""Changes of shape: a map becomes features, time and batch are split or joined.

Only the flattened map is a layer; all other changes are how the model writes down the same numbers.
"""

import math
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from spikeprune.model.trace import Node
from spikeprune.runtime.compile.network import LoweredLayer
from spikeprune.runtime.compile.ops import base
from spikeprune.runtime.compile.ops.base import Operation, Shape, register
from spikeprune.runtime.compile.packing import Packing

if TYPE_CHECKING:
    from spikeprune.runtime.compile.builder import Builder
    from spikeprune.runtime.compile.lower import Lowering
    from spikeprune.runtime.nir_graph import NirGraph


@register
class Flatten(Operation):
    """A reshape to one axis of features. It costs nothing if the next layer can read the map as it is."""

    name = "flatten"
    reads = ("reshape",)
    reshapes = True

    def lower(self, node: Node, to: "Lowering") -> bool:
        source = node.inputs[0]
        form, value, before = to.form[source], to.value[source], to.graph.nodes[source].shape
        new_form = _same_numbers(node.shape, form, to.shape[value], to.static[value], to.T, to.N)
        lead = 2 if form == "sequence" else 1
        flat = node.shape[lead:] == (math.prod(to.shape[value]),) and node.shape[:lead] == before[:lead]
        if new_form:
            to.same(node, new_form)
        elif flat and len(to.shape[value]) > 1:
            to.put(node, self)
        elif flat or (node.shape == before and node.name == "contiguous"):
            to.same(node)
        else:
            raise to.refuse(node, f"reshaping {list(before)} to {list(node.shape)} is not supported")
        return True

    def check(self, layer: LoweredLayer, inputs: list[Shape]) -> Shape:
        base.expect(layer, inputs, set(), set())
        return (math.prod(inputs[0]),)

    def compute(self, layer: LoweredLayer, values: list[Tensor], static: bool, T: int) -> Tensor:
        return values[0].flatten(1 if static else 2)

    def packing(self, layer: LoweredLayer, source: Packing | None) -> Packing | None:
        return source if source is not None and len(source.planes) == 1 else None

    def place(self, place: int, layer: LoweredLayer, builder: "Builder") -> bool:
        readers = builder.readers[layer.output]
        linear = all(builder.network.layers[p].op.reads_maps(p, builder) for p in readers)
        if not linear or not readers or layer.output == builder.network.output:
            return False
        builder.schedule.notes[place] = "native"
        return True

    def takes_packed(self, place: int, builder: "Builder") -> bool:
        return True

    def export_nir(self, layer: LoweredLayer, graph: "NirGraph") -> None:
        import nir

        before = np.array(graph.shapes[layer.inputs[0]])
        graph.node(layer, nir.Flatten({"input": before}, start_dim=0, end_dim=-1))
        if layer.inputs[0] in graph.binary:
            graph.binary.add(layer.output)


def _same_numbers(shape: Shape, form: str, per_image: Shape, static: bool, T: int, N: int) -> str:
    """The form that the same numbers have in the new shape, "" if they are arranged in another way."""
    sequence = (T, N, *per_image)
    if form == "image" and (shape == (1, N, *per_image) or (static and shape == sequence)):
        return "sequence"  # one step, to be repeated, or repeated already
    if form == "sequence" and (shape == sequence or (static and shape == (1, N, *per_image))):
        return "sequence"
    if form == "sequence" and not static and shape == (T * N, *per_image):
        return "merged"
    return "sequence" if form == "merged" and shape == sequence else ""
