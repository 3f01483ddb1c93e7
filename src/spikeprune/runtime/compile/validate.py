"""A compiled network from a file: everything that its kernels rely on is checked before anything runs.

A checksum shows accidents, not intent. So shapes are computed again from the input's, and compared with what the file
says; every tensor has the dtype and shape that its layer needs; values are made before they are read; and the sizes of
everything together stay below what a network can need.
"""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from spikeprune.core.errors import InvalidValue
from spikeprune.runtime.compile.network import Layout, LoweredLayer, LoweredNetwork
from spikeprune.runtime.compile.ops import operation

MOST_STEPS = 65_535
MOST_LAYERS = 10_000
MOST_INPUTS = 64  # of one layer
MOST_TENSORS = 4_096
LARGEST_SIZE = 1 << 24  # of one axis
MOST_VALUES = 1 << 29  # over all values and steps of one image: 2 GiB of float32
MOST_WORK = 1 << 42  # multiplies of one image


def network_of(head: Any, tensors: Mapping[str, Tensor]) -> tuple[LoweredNetwork, str]:
    """The network and precision that a file describes.

    Args:
        head: what the file's JSON says. tensors: the file's tensors, by place and name.
    Raises: InvalidValue for whatever cannot be run.
    """
    names = {"precision", "layers", "output", "input_shape", "T", "still", "busy"}
    if not isinstance(head, dict) or set(head) - {"layout"} != names:
        raise InvalidValue("the compiled file does not describe a network; compile the model again")
    if head["precision"] not in ("fp32", "int16"):
        raise InvalidValue(f"the compiled file names the precision {str(head['precision'])[:40]!r}; compile again")
    if not isinstance(head["layers"], list) or not 1 <= len(head["layers"]) <= MOST_LAYERS:
        raise InvalidValue(f"a compiled file holds 1 to {MOST_LAYERS} layers; compile the model again")
    if type(head["still"]) is not bool:
        raise InvalidValue("the compiled file does not say whether it takes still images; compile the model again")
    T = _whole(head["T"], "number of steps", 1, MOST_STEPS)
    shape = _shape(head["input_shape"], "input")
    layers = [_layer(entry, place, tensors) for place, entry in enumerate(head["layers"])]
    used = sum(len(layer.tensors) for layer in layers)
    if used != len(tensors):
        raise InvalidValue(f"the compiled file holds {len(tensors)} tensors, its layers need {used}; compile again")
    output = _whole(head["output"], "output", 0, MOST_LAYERS)
    layout = _layout(head.get("layout", [0, 1, 0, 1, False]), len(shape))  # the usual one is left out of a file
    network = LoweredNetwork(layers, output, shape, T, head["still"], _busy(head["busy"]), layout)
    check(network)
    return network, head["precision"]


def check(network: LoweredNetwork) -> None:
    """Computes every shape again, and bounds the network's size.

    Raises: InvalidValue for a network that cannot be run.
    """
    shapes = {0: network.input_shape}
    values = math.prod(network.input_shape)
    work = 0
    for layer in network.layers:
        missing = [value for value in layer.inputs if value not in shapes]
        if missing or layer.output in shapes or not layer.inputs:
            raise InvalidValue(f"{_named(layer)} reads or writes a value out of order; compile the model again")
        inputs = [shapes[value] for value in layer.inputs]
        shape = tuple(layer.op.check(layer, inputs))
        if shape != layer.shape or any(size < 1 for size in shape):
            said, found = list(layer.shape), list(shape)
            raise InvalidValue(f"{_named(layer)} gives {found}, the compiled file says {said}; compile the model again")
        shapes[layer.output] = shape
        values += math.prod(shape) + _padded(layer, inputs[0])
        if layer.op.weighted:
            weight = layer.tensors["weight"]
            work += weight.numel() * math.prod(shape[1:])
        if values * network.T > MOST_VALUES or work * network.T > MOST_WORK:
            raise InvalidValue(
                f"the compiled file's network is too large at {_named(layer)}, with {network.T} steps; compile it again"
            )
    if network.output not in shapes:
        raise InvalidValue("the compiled file's output is no value of its network; compile the model again")
    if max(network.layout.output) > len(shapes[network.output]) + 1:
        raise InvalidValue(
            "the compiled file puts time or samples on an axis that its output does not have; compile the model again"
        )
    unknown = sorted(network.busy.keys() - shapes.keys())
    if unknown:
        raise InvalidValue(f"the compiled file measures value {unknown[0]}, which it does not hold; compile again")


def _padded(layer: LoweredLayer, shape: tuple[int, ...]) -> int:
    """Values of a map with its border: a kernel's padding goes around both axes."""
    padding = layer.options.get("padding")
    if not isinstance(padding, tuple) or len(shape) != 3:
        return 0
    border = 2 * max(padding)
    return shape[0] * (shape[1] + border) * (shape[2] + border)


def _layer(entry: Any, place: int, tensors: Mapping[str, Tensor]) -> LoweredLayer:
    names = {"kind", "name", "inputs", "output", "shape", "options", "tensors"}
    if not isinstance(entry, dict) or set(entry) != names:
        raise InvalidValue(f"layer {place} of the compiled file is no layer; compile the model again")
    kind, name, own = entry["kind"], entry["name"], entry["tensors"]
    if not isinstance(kind, str) or len(kind) > 40 or not isinstance(name, str) or len(name) > 1000:
        raise InvalidValue(f"layer {place} of the compiled file has no proper name; compile the model again")
    if (
        not isinstance(entry["inputs"], list)
        or len(entry["inputs"]) > MOST_INPUTS
        or not isinstance(entry["options"], dict)
    ):
        raise InvalidValue(f"layer {place} of the compiled file has no proper inputs or settings; compile again")
    if (
        not isinstance(own, list)
        or len(own) > MOST_TENSORS
        or any(f"{place}.{tensor}" not in tensors for tensor in own)
    ):
        raise InvalidValue(f"layer {place} of the compiled file lacks a tensor; compile the model again")
    found = {str(tensor): tensors[f"{place}.{tensor}"] for tensor in own}
    if any(bool(tensor.isnan().any()) for tensor in found.values() if tensor.is_floating_point()):
        raise InvalidValue(f"layer {place} of the compiled file holds nan; compile the model again")
    return LoweredLayer(
        operation(kind),
        name,
        tuple(_whole(value, "input", 0, MOST_LAYERS) for value in entry["inputs"]),
        _whole(entry["output"], "output", 1, MOST_LAYERS),
        _shape(entry["shape"], f"layer {place}"),
        {str(key)[:40]: tuple(value) if isinstance(value, list) else value for key, value in entry["options"].items()},
        found,
    )


def _named(layer: LoweredLayer) -> str:
    return f"layer {layer.name[-60:]!r} ({layer.kind})"


def _whole(value: Any, what: str, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        said = f"{value:.3g}" if isinstance(value, float) else str(value)[:20]
        raise InvalidValue(f"the compiled file's {what} is {said}, not a whole number from {least} to {most}")
    return value


def _shape(value: Any, what: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not 1 <= len(value) <= 4:
        raise InvalidValue(f"the compiled file gives no shape for its {what}; compile the model again")
    return tuple(_whole(size, f"size of {what}", 1, LARGEST_SIZE) for size in value)


def _layout(value: Any, dims: int) -> Layout:
    if not isinstance(value, list) or len(value) != 5 or type(value[4]) is not bool:
        raise InvalidValue("the compiled file does not say where time and samples lie; compile the model again")
    axes = [_whole(axis, "axis", 0, dims + 5) for axis in value[:4]]
    if axes[0] == axes[1] or axes[2] == axes[3] or max(axes[:2]) > dims + 1:
        raise InvalidValue("the compiled file names one axis twice, or one that there is not; compile the model again")
    return Layout((axes[0], axes[1]), (axes[2], axes[3]), value[4])


def _busy(value: Any) -> dict[int, tuple[float, float]]:
    """Shares of channels that are not silent: [value, some, four] each."""
    if not isinstance(value, list) or not all(isinstance(row, list) and len(row) == 3 for row in value):
        raise InvalidValue("the compiled file's measure of its values is damaged; compile the model again")
    found: dict[int, tuple[float, float]] = {}
    for number, *shares in value:
        if not all(isinstance(s, (int, float)) and not isinstance(s, bool) and 0 <= s <= 1 for s in shares):
            raise InvalidValue("the compiled file's measure of its values is no share from 0 to 1; compile again")
        found[_whole(number, "measured value", 0, MOST_LAYERS)] = (float(shares[0]), float(shares[1]))
    return found
