"""The compiled network's own form: a flat list of layers with folded weights, and what each computes in PyTorch.

Values are numbered; value 0 is the input. A value is static (the same at every step, [N, ...]) or a sequence
[T, N, ...]. The PyTorch functions here define what the native kernels must give; they run where no kernel does.

T time steps, N batch, C channels, H/W space.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from spikeprune.core.errors import InvalidValue

KINDS = ("conv", "linear", "affine", "neuron", "pool", "add", "flatten", "select", "reduce", "repeat")


INT16_MAX = 32767
TILE = 16  # positions that stand for a tile in `busyness`; the kernels' own is 8 to 32


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
    """Layers in order of execution; `T` is how often a still image is shown, `still` whether one may be given.

    `busy`: of a value that holds spikes or means of them, the share of channels in a tile that are not silent on the
    example, and of those that reach 4 spikes in a window; what the cost of event-driven layers depends on.
    """

    layers: list[Layer]
    output: int
    input_shape: tuple[int, ...]
    T: int
    still: bool
    busy: dict[int, tuple[float, float]] = field(default_factory=dict)

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
    o, bias = layer.options, layer.tensors["bias"]
    settings = (o["stride"], o["padding"], o["dilation"], o["groups"])
    scale = layer.tensors.get("scale")
    if scale is None:
        return F.conv2d(x, layer.tensors["weight"], bias, *settings)
    return F.conv2d(x, layer.tensors["weight"], None, *settings) * channelwise(scale, 3) + channelwise(bias, 3)


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
        scale, bias = layer.tensors.get("scale"), layer.tensors["bias"]
        if scale is None:
            return F.linear(x, layer.tensors["weight"], bias)
        return F.linear(x, layer.tensors["weight"]) * scale + bias
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


def interpret(network: Network, x: Tensor, still: bool) -> dict[int, Tensor]:
    """All values of the network for the input x (an image batch if `still`, else a sequence), in PyTorch alone."""
    T = network.T if still else len(x)
    static = network.static(still)
    values = {0: x}
    for layer in network.layers:
        inputs = [values[value] for value in layer.inputs]
        values[layer.output] = compute(layer, inputs, all(v in static for v in layer.inputs), T)
    return values


def busyness(x: Tensor) -> tuple[float, float]:
    """Of the sequence x [T, N, C, ...]: how many of its (channel, tile) pairs are not silent, and reach 1."""
    flat = x.flatten(3) if x.dim() > 3 else x.unsqueeze(-1)
    top = flat.amax(0)  # a column holds all steps of a word
    top = F.pad(top, (0, -top.shape[-1] % TILE)).unflatten(-1, (-1, TILE)).amax(-1)
    return float((top > 0).float().mean()), float((top >= 1).float().mean())


def quantize(layer: Layer, units: int) -> Layer:
    """A conv or linear layer with whole-number weights whose sums fit 16 bits, whatever the input.

        w = scale[c] * q,  sum |q| * units <= 32767 for every output channel c

    Overflow is impossible by construction: each channel's scale leaves room for all of its inputs at their largest.

    Args:
        units: the largest input, in the steps that inputs come in: 1 for spikes, 4 for the mean of 4 spikes.
    """
    weight = layer.tensors["weight"].double()
    rows = weight.flatten(1).abs()
    room = INT16_MAX // units
    # Rounding moves each weight by half a step at most, so this many steps are kept free.
    free = (rows > 0).sum(1).double() / 2
    total = rows.sum(1)
    steps = torch.where(total > 0, (room - free).clamp(min=1) / total.clamp(min=1e-300), torch.ones_like(total))
    whole = (weight * steps.view(-1, *[1] * (weight.dim() - 1))).round()
    if bool((whole.flatten(1).abs().sum(1) > room).any()):
        raise InvalidValue(
            f"{layer.name!r} has more weights per channel than 16-bit sums can hold; compile with precision='fp32'"
        )
    tensors = {"weight": whole.float(), "bias": layer.tensors["bias"], "scale": (1 / steps).float()}
    return replace(layer, tensors=tensors)
