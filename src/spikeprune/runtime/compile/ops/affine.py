"""Scaling and shifting of channels: BatchNorm in eval mode, a mask or number that multiplies.  y = scale * x + bias"""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from spikeprune.model.trace import Node
from spikeprune.runtime.compile.network import LoweredLayer, channelwise
from spikeprune.runtime.compile.ops import base
from spikeprune.runtime.compile.ops.base import Operation, Shape, array, register

if TYPE_CHECKING:
    from spikeprune.runtime.compile.builder import Builder
    from spikeprune.runtime.compile.lower import Lowering
    from spikeprune.runtime.nir_graph import NirGraph

_PRODUCTS = ("mul", "mul_", "__mul__", "__rmul__")


@register
class Affine(Operation):
    """Folded into the layer before it wherever that is a conv or linear layer that nothing else reads."""

    name = "affine"
    reads = ("norm", "other")

    def lower(self, node: Node, to: "Lowering") -> bool:
        if node.module is not None:
            return self._norm(node, to)
        channels, dims = to.shape[to.value[node.inputs[0]]][0], len(to.shape[to.value[node.inputs[0]]])
        constants = to.graph.constants.get(node.index, [])
        if node.kind != "other" or len(node.inputs) != 1 or node.name not in _PRODUCTS:
            return False
        factors = [c for c in constants if c.numel() in (1, channels)]
        numbers = [a for a in node.arguments[0] if isinstance(a, (int, float))]
        if factors and (factors[0].numel() == 1 or _is_channel_vector(factors[0], dims)):
            scale = factors[0].double().reshape(-1).expand(channels).clone()
        elif numbers and not constants:
            scale = torch.full((channels,), float(numbers[0]), dtype=torch.float64)
        else:
            return False
        to.put(node, self, {}, scale=scale, bias=torch.zeros_like(scale))
        return True

    def _norm(self, node: Node, to: "Lowering") -> bool:
        m: Any = node.module
        if node.kind != "norm":
            return False
        if not isinstance(m, nn.modules.batchnorm._BatchNorm) or m.running_mean is None or m.running_var is None:
            raise to.refuse(node, "only BatchNorm with running statistics can be folded")
        scale = (m.running_var.double() + m.eps).rsqrt()
        if m.weight is not None:
            scale = scale * m.weight.double()
        shift = -m.running_mean.double() * scale
        if m.bias is not None:
            shift = shift + m.bias.double()
        to.put(node, self, {}, scale=scale, bias=shift)  # float64 until it is folded
        return True

    def check(self, layer: LoweredLayer, inputs: list[Shape]) -> Shape:
        base.expect(layer, inputs, set(), {"scale", "bias"})
        for name in ("scale", "bias"):
            base.check_tensor(layer, name, inputs[0][0])
        return inputs[0]

    def channel_scaling(self, layer: LoweredLayer) -> tuple[Tensor, Tensor]:
        return layer.tensors["scale"], layer.tensors["bias"]

    def selectable(self, layer: LoweredLayer) -> bool:
        return True

    def compute(self, layer: LoweredLayer, values: list[Tensor], static: bool, T: int) -> Tensor:
        x = values[0]
        dims = x.dim() - (1 if static else 2)
        return x * channelwise(layer.tensors["scale"], dims) + channelwise(layer.tensors["bias"], dims)

    def place(self, place: int, layer: LoweredLayer, builder: "Builder") -> bool:
        scale, bias = self.channel_scaling(layer)
        return builder.pointwise(place, layer, {"scale": array(scale), "bias": array(bias)})

    def export_nir(self, layer: LoweredLayer, graph: "NirGraph") -> None:
        scale, bias = (graph.numpy(layer.tensors[key]) for key in ("scale", "bias"))
        graph.channel_matrix(layer, np.diag(scale), bias)


def _is_channel_vector(tensor: Tensor, dims: int) -> bool:
    """Whether a tensor broadcasts along the channel axis only, against [..., C, H, W] or [..., features]."""
    shape = tuple(tensor.shape)
    return len(shape) >= dims and all(size == 1 for place, size in enumerate(shape) if place != len(shape) - dims)
