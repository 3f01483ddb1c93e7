"""Fully connected layer: y = x @ weight.T + bias, with a scale in front of the bias where weights were rounded."""

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spikeprune.model.trace import Node
from spikeprune.runtime.compile import weighted
from spikeprune.runtime.compile.network import LoweredLayer, spatial
from spikeprune.runtime.compile.ops import base
from spikeprune.runtime.compile.ops.base import Operation, Shape, register

if TYPE_CHECKING:
    from spikeprune.runtime.compile.builder import Builder
    from spikeprune.runtime.compile.cost import Choice, Circumstances
    from spikeprune.runtime.compile.lower import Lowering
    from spikeprune.runtime.nir_graph import NirGraph


@register
class FullyConnected(Operation):
    """nn.Linear; natively a convolution with a kernel as large as the map that was flattened before it."""

    name = "linear"
    reads = ("linear",)
    weighted = True

    def lower(self, node: Node, to: "Lowering") -> bool:
        m: Any = node.module
        if not isinstance(m, nn.Linear):
            raise to.refuse(node, "only nn.Linear is supported")
        shape = to.shape[to.value[node.inputs[0]]]
        if len(shape) != 1:
            raise to.refuse(
                node,
                f"it reads {list(shape)} of each image and step, and must read one row of features; call the model "
                "with sequences [T, N, F], or flatten images in its forward",
            )
        bias = torch.zeros(m.out_features) if m.bias is None else m.bias
        to.put(node, self, {}, weight=m.weight.float().clone(), bias=bias.float().clone())
        return True

    def check(self, layer: LoweredLayer, inputs: list[Shape]) -> Shape:
        tensors = {"weight", "bias"} | ({"scale"} & set(layer.tensors))
        base.expect(layer, inputs, set(), tensors)
        if len(inputs[0]) != 1:
            raise base.wrong(layer, f"it needs features, its input is {list(inputs[0])}")
        weight = base.check_tensor(layer, "weight", None, inputs[0][0])
        for name in tensors - {"weight"}:
            base.check_tensor(layer, name, weight.shape[0])
        return (weight.shape[0],)

    def selectable(self, layer: LoweredLayer) -> bool:
        return True

    def compute(self, layer: LoweredLayer, values: list[Tensor], static: bool, T: int) -> Tensor:
        scale, bias = layer.tensors.get("scale"), layer.tensors["bias"]
        if scale is None:
            return F.linear(values[0], layer.tensors["weight"], bias)
        return F.linear(values[0], layer.tensors["weight"]) * scale + bias

    def price(self, layer: LoweredLayer, here: "Circumstances") -> "Choice":
        source, weight = layer.inputs[0], layer.tensors["weight"]
        map_of = here.reshaped.get(source, source)
        if map_of in here.packed or source not in here.packed:
            source = map_of

        def dense(images: int) -> weighted.DenseCall:
            x = torch.zeros(images, weight.shape[1])
            return weighted.DenseCall(f"linear {tuple(weight.shape)}", lambda: F.linear(x, weight))

        return here.price(layer, source, weight[0].numel(), dense)

    def place(self, place: int, layer: LoweredLayer, builder: "Builder") -> bool:
        source = builder.reshaped.get(layer.inputs[0], layer.inputs[0])
        weight = layer.tensors["weight"]
        view = weighted.View(source, weight.view(weight.shape[0], *spatial(builder.shapes[source])))
        return weighted.place(place, layer, view, builder)

    def takes_packed(self, place: int, builder: "Builder") -> bool:
        return builder.engines.get(place) in weighted.PACKED

    def reads_maps(self, place: int, builder: "Builder") -> bool:
        return builder.engines.get(place, "dense") != "dense"

    def export_nir(self, layer: LoweredLayer, graph: "NirGraph") -> None:
        import nir

        graph.node(layer, nir.Affine(*(graph.numpy(layer.tensors[key]) for key in ("weight", "bias"))))
