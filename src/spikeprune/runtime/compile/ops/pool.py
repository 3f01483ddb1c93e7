"""Maximum and average pooling over windows of a map, with every setting of PyTorch's layers but dilation."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from spikeprune.model.trace import Node
from spikeprune.runtime.compile.network import LoweredLayer, Option
from spikeprune.runtime.compile.ops import base
from spikeprune.runtime.compile.ops.base import Operation, Shape, register
from spikeprune.runtime.compile.ops.conv import pair
from spikeprune.runtime.compile.packing import MAX_PLANE_SUM, SPIKES, Packing
from spikeprune.runtime.compile.program import OpSpec

if TYPE_CHECKING:
    from spikeprune.runtime.compile.builder import Builder
    from spikeprune.runtime.compile.lower import Lowering
    from spikeprune.runtime.nir_graph import NirGraph

_SETTINGS = {"mode", "kernel", "stride", "padding", "ceil", "divisor", "count_pad"}


@register
class Pool(Operation):
    """Max and average pooling. Max pooling of packed spikes is a bitwise or.

    An average over up to 15 positions of packed spikes stays packed too, as two planes of bits for its sum.
    """

    name = "pool"
    reads = ("pool",)
    sparse_result = True

    def lower(self, node: Node, to: "Lowering") -> bool:
        m: Any = node.module
        shape = to.shape[to.value[node.inputs[0]]]
        if isinstance(m, nn.MaxPool2d):
            if pair(m.dilation) != (1, 1) or m.return_indices:
                raise to.refuse(node, "max pooling with dilation or indices is not supported")
            options = {"mode": "max", "divisor": None, "count_pad": True}
        elif isinstance(m, nn.AvgPool2d):
            options = {"mode": "avg", "divisor": m.divisor_override, "count_pad": m.count_include_pad}
        elif isinstance(m, nn.AdaptiveAvgPool2d):
            to.put(node, self, _adaptive(shape, tuple(node.shape[-2:])))
            return True
        else:
            raise to.refuse(node, "only 2-d max, average and adaptive average pooling are supported")
        kernel = pair(m.kernel_size)
        options |= {"kernel": kernel, "stride": pair(m.stride), "padding": pair(m.padding), "ceil": m.ceil_mode}
        to.put(node, self, options)
        return True

    def check(self, layer: LoweredLayer, inputs: list[Shape]) -> Shape:
        o = layer.options
        adaptive = o.get("mode") == "adaptive"
        base.expect(layer, inputs, {"mode", "size"} if adaptive else _SETTINGS, set())
        channels, *size = base.check_map(layer, inputs[0])
        if adaptive:
            return channels, *base.check_pair(o["size"], layer, "size", 1)
        if o["mode"] not in ("max", "avg"):
            raise base.wrong(layer, f"its mode is {str(o['mode'])[:40]}")
        for name in ("ceil", "count_pad"):
            base.check_flag(o[name], layer, name)
        if o["divisor"] is not None and (type(o["divisor"]) is not int or not 1 <= o["divisor"] <= base.LARGEST):
            raise base.wrong(layer, f"its divisor is {str(o['divisor'])[:40]}")
        kernel, stride = (base.check_pair(o[name], layer, name, 1) for name in ("kernel", "stride"))
        padding = base.check_pair(o["padding"], layer, "padding", 0)
        if any(2 * p > k for p, k in zip(padding, kernel, strict=True)):
            raise base.wrong(layer, f"its padding {padding} is more than half of its kernel {kernel}")
        return channels, *(
            _pooled(*axis, ceil=bool(o["ceil"])) for axis in zip(size, padding, kernel, stride, strict=True)
        )

    def compute(self, layer: LoweredLayer, values: list[Tensor], static: bool, T: int) -> Tensor:
        return base.over_images(lambda x: _pool(x, layer), values[0], static)

    def unrolled(self, layer: LoweredLayer, values: list[Tensor], static: bool, T: int) -> Tensor:
        x = values[0]
        return _pool(x, layer) if static else _pool(x.flatten(0, 1), layer).reshape(T, -1, *layer.shape)

    def packing(self, layer: LoweredLayer, source: Packing | None) -> Packing | None:
        o: Any = layer.options
        if source is not SPIKES or not _is_native(layer):
            return None
        if o["mode"] == "max":
            return SPIKES
        window = math.prod(o["kernel"])
        if window > MAX_PLANE_SUM:
            return None
        divisor = o["divisor"] or window
        return Packing(((1.0 / divisor, min(3, window)), (4.0 / divisor, window // 4)))

    def place(self, place: int, layer: LoweredLayer, builder: "Builder") -> bool:
        o: Any = layer.options
        source = layer.inputs[0]
        if not _is_native(layer) or len(layer.shape) != 3 or not builder.available(source):
            return False
        packed = builder.packed.get(source) is SPIKES
        maximum = o["mode"] == "max"
        planes = packed and not maximum and layer.output in builder.packed and builder.wanted_packed(layer.output)
        op = OpSpec(
            "pool_max" if maximum else "pool_planes" if planes else "pool_average",
            builder.input(source, words=packed, pad=o["padding"]), layer.shape, (layer.name,),
            kernel=o["kernel"], stride=o["stride"], pad=o["padding"],
        )  # fmt: skip
        divisor = o["divisor"] or math.prod(o["kernel"])
        op.arrays = {"scale": np.full(layer.shape[0], 1.0 / divisor, np.float32)}
        if packed and (maximum or planes):
            op.spikes = builder.make_words(layer.output)
        else:
            op.real = builder.make_real(layer.output)
        builder.add(place, op, "native")
        return True

    def export_nir(self, layer: LoweredLayer, graph: "NirGraph") -> None:
        import nir

        o: Any = layer.options
        if o["mode"] == "adaptive":
            raise graph.refuse(layer, "adaptive pooling to a size that does not divide the input's")
        size = graph.shapes[layer.inputs[0]][1:]
        kernel, stride, padding = o["kernel"], o["stride"], o["padding"]
        floor = tuple(_pooled(*axis, ceil=False) for axis in zip(size, padding, kernel, stride, strict=True))
        if floor != tuple(layer.shape[1:]):
            raise graph.refuse(layer, "ceil_mode pools beyond the edge")
        window = tuple(np.array(pair) for pair in (kernel, stride, padding))
        if o["mode"] == "max":
            if layer.inputs[0] not in graph.binary:
                raise graph.refuse(layer, "max pooling of what is not spikes; use average pooling there")
            graph.node(layer, nir.SumPool2d(*window))
            graph.node(layer, nir.Threshold(np.full(layer.shape, 0.5)), "_any", source=layer.output)
            graph.binary.add(layer.output)
        elif (any(padding) and not o["count_pad"]) or o["divisor"] is not None:
            raise graph.refuse(layer, "an average that does not divide by the size of its window")
        else:
            graph.node(layer, nir.AvgPool2d(*window))


def _adaptive(shape: Shape, size: tuple[int, ...]) -> dict[str, Option]:
    """Adaptive pooling, as plain average pooling where the output's size divides the input's."""
    if any(i % o for i, o in zip(shape[1:], size, strict=True)):
        return {"mode": "adaptive", "size": size}
    kernel = tuple(i // o for i, o in zip(shape[1:], size, strict=True))
    return {"mode": "avg", "kernel": kernel, "stride": kernel, "padding": (0, 0), "ceil": False,
            "divisor": None, "count_pad": True}  # fmt: skip


def _pool(x: Tensor, layer: LoweredLayer) -> Tensor:
    """Pooling of [M, C, H, W]."""
    o: Any = layer.options
    if o["mode"] == "max":
        return F.max_pool2d(x, o["kernel"], o["stride"], o["padding"], ceil_mode=o["ceil"])
    if o["mode"] == "avg":
        return F.avg_pool2d(x, o["kernel"], o["stride"], o["padding"], o["ceil"], o["count_pad"], o["divisor"])
    return F.adaptive_avg_pool2d(x, o["size"])


def _pooled(size: int, padding: int, kernel: int, stride: int, *, ceil: bool) -> int:
    """Number of windows along one axis; a last one that would start beyond the padded input is left out."""
    room = size + 2 * padding - kernel
    windows = (room + stride - 1 if ceil else room) // stride + 1
    return windows - 1 if ceil and (windows - 1) * stride >= size + padding else windows


def _is_native(layer: LoweredLayer) -> bool:
    """Whether the native pooling computes what this layer asks for."""
    o: Any = layer.options
    if o["mode"] not in ("max", "avg"):
        return False
    return not o["ceil"] and not (o["mode"] == "avg" and any(o["padding"]) and not o["count_pad"])
