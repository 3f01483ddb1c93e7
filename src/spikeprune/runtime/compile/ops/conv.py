"""Two-dimensional convolution, with BatchNorm folded in.

y = conv2d(x, weight) + bias, or scale * conv2d(x, weight) + bias where the weights were rounded to whole numbers.
"""

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spikeprune.model.trace import Node
from spikeprune.runtime.compile import weighted
from spikeprune.runtime.compile.network import LoweredLayer, channelwise
from spikeprune.runtime.compile.ops import base
from spikeprune.runtime.compile.ops.base import Operation, Runner, Shape, register

if TYPE_CHECKING:
    from spikeprune.runtime.compile.builder import Builder
    from spikeprune.runtime.compile.cost import Choice, Circumstances
    from spikeprune.runtime.compile.lower import Lowering
    from spikeprune.runtime.nir_graph import NirGraph


@register
class Conv(Operation):
    """nn.Conv2d."""

    name = "conv"
    reads = ("conv",)
    weighted = True

    def lower(self, node: Node, to: "Lowering") -> bool:
        m: Any = node.module
        if not isinstance(m, nn.Conv2d):
            raise to.refuse(node, "only nn.Conv2d is supported")
        if m.padding_mode != "zeros" and any(pair(m.padding)):
            raise to.refuse(node, f"padding_mode={m.padding_mode!r} is not supported, only 'zeros'")
        padding = m.padding
        if isinstance(padding, str):
            total = [d * (k - 1) for d, k in zip(m.dilation, m.kernel_size, strict=True)]
            if padding == "same" and any(t % 2 for t in total):
                raise to.refuse(node, "padding='same' with an even kernel is not supported")
            padding = (0, 0) if padding == "valid" else tuple(t // 2 for t in total)
        options = {"stride": m.stride, "padding": tuple(padding), "dilation": m.dilation, "groups": m.groups}
        bias = torch.zeros(m.out_channels) if m.bias is None else m.bias
        to.put(node, self, options, weight=m.weight.float().clone(), bias=bias.float().clone())
        return True

    def check(self, layer: LoweredLayer, inputs: list[Shape]) -> Shape:
        tensors = {"weight", "bias"} | ({"scale"} & set(layer.tensors))
        base.expect(layer, inputs, {"stride", "padding", "dilation", "groups"}, tensors)
        o = layer.options
        channels, *size = base.check_map(layer, inputs[0])
        groups = o["groups"]
        if type(groups) is not int or groups < 1 or channels % groups:
            raise base.wrong(layer, f"{str(groups)[:40]} groups do not divide {channels} channels")
        weight = base.check_tensor(layer, "weight", None, channels // groups, None, None)
        if weight.shape[0] % groups:
            raise base.wrong(layer, f"{groups} groups do not divide {weight.shape[0]} output channels")
        for name in tensors - {"weight"}:
            base.check_tensor(layer, name, weight.shape[0])
        stride, dilation = (base.check_pair(o[name], layer, name, 1) for name in ("stride", "dilation"))
        padding = base.check_pair(o["padding"], layer, "padding", 0)
        shape = [
            (s + 2 * p - d * (k - 1) - 1) // t + 1
            for s, p, d, k, t in zip(size, padding, dilation, weight.shape[2:], stride, strict=True)
        ]
        return weight.shape[0], *shape

    def selectable(self, layer: LoweredLayer) -> bool:
        return layer.options["groups"] == 1

    def compute(self, layer: LoweredLayer, values: list[Tensor], static: bool, T: int) -> Tensor:
        return base.over_images(lambda x: _convolve(x, layer), values[0], static)

    def prefers_channels_last(self, layer: LoweredLayer) -> bool:
        _, h, w = layer.shape  # all but thin inputs and tiny maps
        return layer.tensors["weight"].shape[1] >= 8 and h * w > 4

    def runner(self, layer: LoweredLayer, static: bool) -> Runner:
        if not self.prefers_channels_last(layer):
            return super().runner(layer, static)
        form = torch.channels_last
        weight = layer.tensors["weight"].contiguous(memory_format=form)
        fast = LoweredLayer(
            self,
            layer.name,
            layer.inputs,
            layer.output,
            layer.shape,
            layer.options,
            {**layer.tensors, "weight": weight},
        )
        return lambda values, T: base.over_images(
            lambda x: _convolve(x.contiguous(memory_format=form), fast), values[0], static
        )

    def unrolled(self, layer: LoweredLayer, values: list[Tensor], static: bool, T: int) -> Tensor:
        x = values[0]
        return _convolve(x, layer) if static else _convolve(x.flatten(0, 1), layer).reshape(T, -1, *layer.shape)

    def price(self, layer: LoweredLayer, here: "Circumstances") -> "Choice":
        o: Any = layer.options
        weight = layer.tensors["weight"]

        def dense(images: int) -> "weighted.DenseCall":
            form = torch.channels_last if self.prefers_channels_last(layer) else torch.contiguous_format
            h, w = _input_size(layer)
            x = torch.zeros(images, weight.shape[1] * o["groups"], h, w).contiguous(memory_format=form)
            fast = weight.contiguous(memory_format=form)
            key = f"conv {tuple(weight.shape)} {o['stride']} {o['padding']} {o['dilation']} {o['groups']} {h} {w}"
            settings = (o["stride"], o["padding"], o["dilation"], o["groups"])
            return weighted.DenseCall(key, lambda: F.conv2d(x, fast, None, *settings))

        return here.price(layer, layer.inputs[0], weight[0].numel() * o["groups"], dense)

    def place(self, place: int, layer: LoweredLayer, builder: "Builder") -> bool:
        o: Any = layer.options
        view = weighted.View(
            layer.inputs[0], layer.tensors["weight"], o["stride"], o["padding"], o["dilation"], o["groups"]
        )
        return weighted.place(place, layer, view, builder)

    def takes_packed(self, place: int, builder: "Builder") -> bool:
        return builder.engines.get(place) in weighted.PACKED

    def export_nir(self, layer: LoweredLayer, graph: "NirGraph") -> None:
        import nir

        from spikeprune.runtime.nir_graph import ungrouped

        o: Any = layer.options
        weight = graph.numpy(ungrouped(layer.tensors["weight"], o["groups"]))
        size = graph.space(graph.shapes[layer.inputs[0]])
        bias = graph.numpy(layer.tensors["bias"])
        graph.node(layer, nir.Conv2d(size, weight, o["stride"], o["padding"], o["dilation"], 1, bias))


def pair(value: Any) -> tuple[int, int]:
    """A setting for both axes of a map, from one number or two."""
    return (value, value) if isinstance(value, int) else tuple(value)  # pyright: ignore[reportReturnType]


def _convolve(x: Tensor, layer: LoweredLayer) -> Tensor:
    """Convolution of [M, C, H, W] with the folded weights."""
    o: Any = layer.options
    bias = layer.tensors["bias"]
    settings = (o["stride"], o["padding"], o["dilation"], o["groups"])
    scale = layer.tensors.get("scale")
    if scale is None:
        return F.conv2d(x, layer.tensors["weight"], bias, *settings)
    return F.conv2d(x, layer.tensors["weight"], None, *settings) * channelwise(scale, 3) + channelwise(bias, 3)


def _input_size(layer: LoweredLayer) -> tuple[int, int]:
    """The smallest input map that gives the layer's output map."""
    o: Any = layer.options
    kernel = layer.tensors["weight"].shape[2:]
    sizes = [
        (out - 1) * s + d * (k - 1) + 1 - 2 * p
        for out, s, d, k, p in zip(layer.shape[1:], o["stride"], o["dilation"], kernel, o["padding"], strict=True)
    ]
    return sizes[0], sizes[1]
