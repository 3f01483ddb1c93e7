"""The compiled network's own form: a flat list of layers with folded weights, and what each computes in PyTorch.

Values are numbered; value 0 is the input. A value is static (the same at every step, [N, ...]) or a sequence
[T, N, ...]. The PyTorch functions here define what the native kernels must give; they run where no kernel does.

T time steps, N batch, C channels, H/W space.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

KINDS = ("conv", "linear", "affine", "neuron", "pool", "add", "flatten", "select", "reduce", "repeat")


@dataclass
class Layer:
    """One computation on numbered values.

    Attributes:
        kind: one of KINDS.
        name: the module's name as in `named_modules`.
        inputs: numbers of the values read; `output` of the value written.
        shape: shape of the output of one image and step, (C, H, W) or (features,).
        options: plain settings (stride, padding, ...).
        tensors: weights and per-channel vectors.
    """

    kind: str
    name: str
    inputs: tuple[int, ...]
    output: int
    shape: tuple[int, ...]
    options: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Network:
    """Layers in order of execution; `T` is how often a still image is shown, `still` whether one may be given."""

    layers: list[Layer]
    output: int
    input_shape: tuple[int, ...]
    T: int
    still: bool
    sequence: bool
    activity: dict[int, float] = field(default_factory=dict)  # share of values that are not zero, on the example

    def readers(self) -> dict[int, list[int]]:
        """Value -> places of the layers that read it."""
        table: dict[int, list[int]] = {0: []}
        for place, layer in enumerate(self.layers):
            table.setdefault(layer.output, [])
            for value in layer.inputs:
                table.setdefault(value, []).append(place)
        return table

    def static(self, still: bool) -> set[int]:
        """Values that are the same at every step: all that a still image reaches before the first neuron."""
        found: set[int] = {0} if still else set()
        for layer in self.layers:
            if layer.kind not in ("neuron", "reduce", "repeat") and all(value in found for value in layer.inputs):
                found.add(layer.output)
        return found


def channelwise(vector: Tensor, dims: int) -> Tensor:
    """A [C] vector as it broadcasts against [..., C, H, W] (dims = 3) or [..., features] (dims = 1)."""
    return vector.view(-1, *[1] * (dims - 1))


def conv(x: Tensor, layer: Layer) -> Tensor:
    """Convolution of [M, C, H, W] with the folded weights."""
    o = layer.options
    return F.conv2d(
        x, layer.tensors["weight"], layer.tensors["bias"], o["stride"], o["padding"], o["dilation"], o["groups"]
    )


def pool(x: Tensor, layer: Layer) -> Tensor:
    """Pooling of [M, C, H, W]."""
    o = layer.options
    if o["mode"] == "max":
        return F.max_pool2d(x, o["kernel"], o["stride"], o["padding"], ceil_mode=o["ceil"])
    if o["mode"] == "avg":
        return F.avg_pool2d(x, o["kernel"], o["stride"], o["padding"], o["ceil"], o["count_pad"], o["divisor"])
    return F.adaptive_avg_pool2d(x, o["size"])


def fire(x: Tensor, layer: Layer) -> Tensor:
    """Spikes of an integrate-and-fire neuron for the sequence x [T, N, C, ...].

    v_pre = decay * v + (gain * x + shift), with shift = (1 - decay) * v_rest.
    """
    dims = x.dim() - 2
    p = {name: channelwise(value, dims) for name, value in layer.tensors.items()}
    v: Tensor = p["start"].expand(x.shape[1:])
    spikes = torch.empty_like(x, memory_format=torch.contiguous_format)
    for t, current in enumerate(x):
        v_pre = p["decay"] * v + (p["gain"] * current + p["shift"])
        fired = v_pre > p["threshold"] if layer.options["strict"] else v_pre >= p["threshold"]
        spikes[t] = fired
        v = v_pre - p["threshold"] * fired if layer.options["soft"] else torch.where(fired, p["reset"], v_pre)
    return spikes


def compute(layer: Layer, values: list[Tensor], static: bool, T: int) -> Tensor:
    """What a layer gives, in PyTorch. `static` says that all `values` lack the time axis."""
    x = values[0]
    if layer.kind in ("conv", "pool"):
        function = conv if layer.kind == "conv" else pool
        if static:
            return function(x, layer)
        return function(x.flatten(0, 1), layer).unflatten(0, x.shape[:2])
    if layer.kind == "linear":
        return F.linear(x, layer.tensors["weight"], layer.tensors["bias"])
    if layer.kind == "affine":
        dims = x.dim() - (1 if static else 2)
        return x * channelwise(layer.tensors["scale"], dims) + channelwise(layer.tensors["bias"], dims)
    if layer.kind == "neuron":
        return fire(x.expand(T, *x.shape) if static else x, layer)
    if layer.kind == "add":
        return values[0] + values[1]
    if layer.kind == "flatten":
        return x.flatten(1 if static else 2)
    if layer.kind == "select":
        return x.index_select(1 if static else 2, layer.tensors["index"])
    if layer.kind == "repeat":
        return x.expand(T, *x.shape) if static else x
    scale = 1.0 if layer.options["mode"] == "sum" else 1.0 / T  # reduce over time
    return x * (scale * T) if static else x.sum(0) * scale
