"""Layers that are sums of matrix products, and for which NIR has no node: as matrices over whole images.

    y = sum_k W_k x_k + b,   x_k and y flattened

Three-dimensional and transposed convolutions, padding around the edge, concatenations and averages are such layers.
They are told by running the layer on unit vectors, and verified on random sequences in float64.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from spikeprune.runtime.compile.network import LoweredLayer

LARGEST = 1 << 22  # numbers of one matrix
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Matrices:
    """W_k [out, in_k] for each input, and b [out]."""

    weights: tuple[Tensor, ...]
    shift: Tensor


def size_of(layer: LoweredLayer, shapes: Sequence[Shape]) -> int:
    """Numbers of the layer's largest matrix."""
    return math.prod(layer.shape) * max(math.prod(shape) for shape in shapes)


def matrices(layer: LoweredLayer, shapes: Sequence[Shape]) -> Matrices | None:
    """The layer's matrices, None if it is something else or they are too large."""
    if size_of(layer, shapes) > LARGEST:
        return None
    try:
        return _measured(_exact(layer), shapes)
    except (RuntimeError, IndexError):  # a function without float64
        return None


def any_of(layer: LoweredLayer, shape: Shape) -> Tensor | None:
    """W [out, in] of zeros and ones with y = (W x > 0.5) for spikes x, as max pooling has; None otherwise."""
    if size_of(layer, [shape]) > LARGEST:
        return None
    layer, inputs = _exact(layer), math.prod(shape)
    try:
        weight = _run(layer, [_units(shape)]).flatten(1).T
        found = torch.rand(3, 8, inputs, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        spikes = (found < torch.tensor([0.02, 0.2, 0.6], dtype=torch.float64).view(3, 1, 1)).double()
        answer = _over_time(layer, [spikes.unflatten(2, shape)]).flatten(2)
    except (RuntimeError, IndexError):
        return None
    binary = bool(((weight == 0) | (weight == 1)).all())
    return weight if binary and torch.equal(answer, (spikes @ weight.T > 0.5).double()) else None


def over_channels(weight: Tensor, shape: Shape, to: Shape) -> Tensor | None:
    """M [out, in] if W works at each position alone and everywhere alike: y[c] = sum_d M[c, d] x[d]; else None."""
    if len(shape) < 2 or shape[1:] != to[1:]:
        return None
    positions = math.prod(shape[1:])
    blocks = weight.view(to[0], positions, shape[0], positions)
    mixed = blocks[:, 0, :, 0]
    if int(weight.count_nonzero()) != int(mixed.count_nonzero()) * positions:
        return None
    along = blocks.diagonal(dim1=1, dim2=3)  # [out, in, positions]
    return mixed if bool((along == mixed.unsqueeze(-1)).all()) else None


def is_mean(weight: Tensor, shape: Shape, to: Shape) -> bool:
    """Whether W averages each map of [C, H, W] as a whole."""
    if len(shape) != 3 or math.prod(to) != shape[0]:
        return False
    area = shape[1] * shape[2]
    wanted = torch.eye(shape[0], dtype=weight.dtype).repeat_interleave(area, 1) / area
    return torch.allclose(weight, wanted, rtol=1e-6, atol=1e-9)


def _measured(layer: LoweredLayer, shapes: Sequence[Shape]) -> Matrices | None:
    nothing = [torch.zeros(1, *shape, dtype=torch.float64) for shape in shapes]
    shift = _run(layer, nothing).flatten()
    weights: list[Tensor] = []
    for k, shape in enumerate(shapes):
        units = _units(shape)
        given = [units if i == k else x.expand(len(units), *x.shape[1:]) for i, x in enumerate(nothing)]
        weights.append((_run(layer, given).flatten(1) - shift).T)
    generator = torch.Generator().manual_seed(0)
    xs = [torch.randn(3, 4, *shape, generator=generator, dtype=torch.float64) for shape in shapes]
    answer = _over_time(layer, xs).flatten(2)
    wanted = shift + sum((x.flatten(2) @ w.T for x, w in zip(xs, weights, strict=True)), torch.zeros(()))
    near = answer.shape == wanted.shape and torch.allclose(answer, wanted, rtol=1e-6, atol=1e-6)
    return Matrices(tuple(weights), shift) if near else None


def _exact(layer: LoweredLayer) -> LoweredLayer:
    doubled = {name: t.double() if t.is_floating_point() else t for name, t in layer.tensors.items()}
    return replace(layer, tensors=doubled)


def _units(shape: Shape) -> Tensor:
    size = math.prod(shape)
    return torch.eye(size, dtype=torch.float64).view(size, *shape)


def _run(layer: LoweredLayer, values: list[Tensor]) -> Tensor:
    return _over_time(layer, [value.unsqueeze(0) for value in values])[0]


def _over_time(layer: LoweredLayer, values: list[Tensor]) -> Tensor:
    """[T, M, *shape] of the layer for sequences [T, M, ...]; a layer that remembers does not pass the test on them."""
    with torch.no_grad():
        return layer.op.compute(layer, values, False, len(values[0]))
