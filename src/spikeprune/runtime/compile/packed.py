"""Tensors in a compiled file: a sparse one is stored as one bit for each entry, and the entries that are not 0.

A tensor of n entries of s bytes with k of them not 0 takes n / 8 + k s bytes. Whole numbers below 2^15, as in int16
networks, take 2 bytes each, and equal ones, as the decays of most neurons, are stored once. A tensor that would not
become smaller is stored as it is.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from spikeprune.core.errors import InvalidValue
from spikeprune.core.mask import pack, unpack
from spikeprune.record.base import Json

_BITS, _VALUES = ".bits", ".values"
_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (torch.float32, torch.int16, torch.int32)}


def packed(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, tuple[str, list[int]]]]:
    """The tensors to store, and what `unpacked` must know of them: name -> [dtype, shape]."""
    stored: dict[str, Tensor] = {}
    said: dict[str, tuple[str, list[int]]] = {}
    for name, tensor in tensors.items():
        kind = str(tensor.dtype).removeprefix("torch.")
        alive = tensor != 0
        values = _once(_short(tensor[alive]))
        size = math.ceil(tensor.numel() / 8) + values.numel() * values.element_size()
        if kind not in _DTYPES or size >= tensor.numel() * tensor.element_size():
            stored[name] = tensor.contiguous().clone()
            continue
        said[name] = kind, list(tensor.shape)
        stored |= {name + _BITS: pack(alive), name + _VALUES: values.contiguous()}
    return stored, said


def _once(values: Tensor) -> Tensor:
    return values[:1] if values.numel() > 1 and bool((values == values[0]).all()) else values


def _short(values: Tensor) -> Tensor:
    """The values as int16 if they are whole numbers of that size."""
    if values.dtype is torch.int16 or not bool(values.isfinite().all()):
        return values
    whole = values.clamp(-32768, 32767).to(torch.int16)
    return whole if torch.equal(whole.to(values.dtype), values) else values


def unpacked(stored: Mapping[str, Tensor], said: Json) -> dict[str, Tensor]:
    """The tensors that `packed` was given; 0 where it was -0.

    Raises: InvalidValue if the stored tensors are not what `said` tells; no tensor is larger than 32 times its bits.
    """
    if not isinstance(said, dict):
        raise InvalidValue("its table of packed tensors is none; compile the model again and .save(path)")
    tensors = {n: t for n, t in stored.items() if n.removesuffix(_BITS) not in said and _owner(n) not in said}
    for name, entry in said.items():
        kind, shape = _checked(name, entry)
        bits, values = stored.get(name + _BITS), stored.get(name + _VALUES)
        if bits is None or values is None or bits.dtype is not torch.uint8 or bits.dim() != 1 or values.dim() != 1:
            raise InvalidValue(f"the packed tensor {name[:60]!r} lacks its bits or values")
        alive = unpack(bits, shape)
        count = int(alive.sum())
        if values.numel() not in ((count, 1) if count else (0,)) or values.dtype not in (kind, torch.int16):
            raise InvalidValue(f"the packed tensor {name[:60]!r} has {values.numel()} values, not those of its bits")
        tensors[name] = torch.zeros(shape, dtype=kind)
        tensors[name][alive] = values.to(kind)
    return tensors


def _owner(name: str) -> str:
    return name.removesuffix(_VALUES)


def _checked(name: str, entry: Json) -> tuple[torch.dtype, tuple[int, ...]]:
    wrong = InvalidValue(f"the packed tensor {name[:60]!r} has no known dtype and shape")
    kind, shape = entry if isinstance(entry, list) and len(entry) == 2 else (None, None)
    if not isinstance(kind, str) or kind not in _DTYPES or not isinstance(shape, list):
        raise wrong
    sizes = [size for size in shape if type(size) is int and size >= 0]
    if len(sizes) != len(shape) or len(sizes) > 8 or math.prod(sizes) >= 2**40:
        raise wrong
    return _DTYPES[kind], tuple(sizes)
