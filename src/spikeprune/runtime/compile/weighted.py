"""Layers that multiply with a weight: their engines, and how their kept weights become a native operation.

Engines:
    lookup  kept weights only, two at a time, on spikes packed in bits
    event   kept weights of the input channels that fired somewhere in a tile, on spikes packed in bits
    real    kept weights only, on inputs of any value
    dense   PyTorch's layer with the folded weights
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from spikeprune.core.errors import InvalidValue
from spikeprune.runtime.compile.network import LoweredLayer, spatial
from spikeprune.runtime.compile.ops.base import array
from spikeprune.runtime.compile.packing import SPIKES
from spikeprune.runtime.compile.program import MAX_COLUMNS, OpSpec, event_lists, lookup_pairs, real_weights, sparse

if TYPE_CHECKING:
    from spikeprune.runtime.compile.builder import Builder

PACKED = ("lookup", "event")  # engines that read spikes packed in bits
ENGINES = (*PACKED, "real", "dense")
INT16_MAX = 32767


class DenseCall(NamedTuple):
    """PyTorch's layer to be timed, and a key that is the same for layers that take the same time."""

    key: str
    run: Callable[[], object]


@dataclass
class View:
    """A layer with a weight, written as a convolution.

    source: number of the value that it reads. weight: [O, I / groups, kh, kw].
    """

    source: int
    weight: Tensor
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1


def place(place: int, layer: LoweredLayer, view: View, builder: "Builder") -> bool:
    """Adds the layer to the native program on the engine that was chosen for it; False if it cannot run there."""
    engine = builder.engines.get(place, "dense")
    if engine == "dense":
        return False
    source = view.source
    packs = engine in PACKED
    packed = builder.packed.get(source)
    planes: tuple[tuple[float, int], ...] = ()
    if packs:
        if packed is None or not builder.available(source):
            return False
        if packed is not SPIKES and source not in builder.words:
            return False  # sums that were already unpacked
        planes = packed.planes
    kept = sparse(view.weight, view.groups)
    if kept.n_columns * len(planes) >= MAX_COLUMNS:
        return False
    op = OpSpec(
        "conv_lookup" if packs else "conv_real", builder.input(source, words=packs, pad=view.padding),
        spatial(layer.shape), (layer.name,), kernel=(view.weight.shape[2], view.weight.shape[3]), stride=view.stride,
        pad=view.padding, dilation=view.dilation, sparse=kept, planes=planes,
    )  # fmt: skip
    op.arrays = {"bias": array(layer.tensors["bias"])}
    if "scale" in layer.tensors:  # whole numbers: summed exactly, scaled behind the sum
        op.arrays["scale"] = array(layer.tensors["scale"])
    builder.finish(layer, op)
    op.arrays |= entries(op, engine)
    builder.add(place, op, engine)
    return True


def entries(op: OpSpec, engine: str) -> dict[str, np.ndarray]:
    """The kept weights in the order of the engine's kernel."""
    assert op.sparse is not None
    if engine == "real":
        starts, weights = real_weights(op.sparse)
        return {"starts": starts, "weights": weights}
    # The upper plane of an average is silent almost everywhere (it takes four spikes at once), so it goes by events.
    first = 1 if engine == "lookup" else 0
    starts, pairs = lookup_pairs(op.sparse, op.planes, first)
    arrays = {"starts": starts, "pairs": pairs}
    if op.planes[first:]:
        op.first_event = first * op.sparse.n_columns
        lists = [event_lists(op.sparse, factor) for factor, _ in op.planes[first:]]
        ends = np.cumsum([0, *(len(events) for _, events in lists)])
        begins = [starts[:-1] + end for (starts, _), end in zip(lists, ends, strict=False)]
        arrays["event_starts"] = np.concatenate([*begins, ends[-1:]]).astype(np.int32)
        arrays["events"] = np.concatenate([events for _, events in lists])
    return arrays


def quantize(layer: LoweredLayer, units: int) -> LoweredLayer:
    """A layer with whole-number weights whose sums fit 16 bits, whatever the input.

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
    if bool(((total > 0) & (whole.flatten(1).abs().sum(1) == 0)).any()):  # a step is more than twice the largest weight
        raise InvalidValue(
            f"{layer.name!r} has more weights per channel than 16-bit sums can hold; compile with precision='fp32'"
        )
    tensors = {"weight": whole.float(), "bias": layer.tensors["bias"], "scale": (1 / steps).float()}
    return replace(layer, tensors=tensors)
