"""A forward keeps spikes for the backward pass as bits instead of floats.

A convolution keeps its input for the weight's gradient, a pooling layer for its own. Where that input is a tensor of
spikes that a fused neuron has just made, all of them share one packed copy.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from spikeprune.runtime.fuse.kernel import kernels
from spikeprune.runtime.structs import ELEMENTS, pointer, run

# Below this many elements the Python around it costs more than the memory is worth.
_LEAST = 1 << 12


@dataclass
class _Made:
    storage: StorageWeakRef
    version: int  # moves when somebody writes into the spikes; then they may be spikes no longer
    numel: int
    bits: Tensor | None = None


@dataclass(frozen=True)
class _Packed:
    bits: Tensor
    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype


class SpikeStore:
    """The spike tensors of one forward, and the saved-tensor hooks that pack them."""

    def __init__(self) -> None:
        self.made: dict[int, _Made] = {}

    def add(self, spikes: Tensor) -> None:
        """Registers a dense tensor of 0 and 1."""
        if spikes.numel() >= _LEAST:
            storage = spikes.untyped_storage()
            self.made[storage.data_ptr()] = _Made(StorageWeakRef(storage), spikes._version, spikes.numel())

    def knows(self, tensor: Tensor) -> bool:
        """Whether the tensor is (a view of all of) registered spikes."""
        made = self.made.get(tensor.untyped_storage().data_ptr())
        # An expired storage is another one's memory by now; a part or an overlap of it is not what the bits stand for.
        return (
            made is not None
            and not made.storage.expired()
            and tensor._version == made.version
            and tensor.numel() == made.numel
            and _dense(tensor)
        )

    def find(self, tensor: Tensor) -> Tensor | None:
        """The bits, in order of memory, if the tensor is (a view of all of) registered spikes."""
        if not self.knows(tensor):
            return None
        made = self.made[tensor.untyped_storage().data_ptr()]
        if made.bits is None:
            made.bits = _to_bits(tensor)
        return made.bits

    def pack(self, tensor: Tensor) -> Any:
        """Hook: bits if the tensor is (a view of) registered spikes, else the tensor itself."""
        bits = self.find(tensor)
        return tensor if bits is None else _Packed(bits, tensor.shape, tensor.stride(), tensor.dtype)

    @staticmethod
    def unpack(saved: Any) -> Tensor:
        """Hook: the tensor that was saved."""
        return _from_bits(saved) if isinstance(saved, _Packed) else saved


def _dense(tensor: Tensor) -> bool:
    """Whether the elements fill their memory without gap or overlap, in whatever order."""
    expected = 1
    for stride, size in sorted((st, si) for st, si in zip(tensor.stride(), tensor.shape, strict=True) if si > 1):
        if stride != expected:
            return False
        expected *= size
    return tensor.storage_offset() == 0


def _to_bits(spikes: Tensor) -> Tensor:
    flat = spikes.detach().as_strided((spikes.numel(),), (1,))
    library = kernels(spikes)
    if library is None:  # one byte each
        return flat.to(torch.bool)
    # Readers take 8 bytes at a time; the bytes behind the last spike are 0.
    bits = torch.empty((flat.numel() + 7) // 8 + 8, dtype=torch.uint8)
    bits[-8:] = 0
    run("packing spikes", library.fuse_pack(ELEMENTS[spikes.dtype], flat.numel(), pointer(flat), pointer(bits)))
    return bits


def _from_bits(packed: _Packed) -> Tensor:
    out = torch.empty_strided(packed.shape, packed.stride, dtype=packed.dtype, device=packed.bits.device)
    flat = out.as_strided((out.numel(),), (1,))
    if packed.bits.dtype == torch.bool:
        flat.copy_(packed.bits)
        return out
    library = kernels(out)
    assert library is not None
    status = library.fuse_unpack(ELEMENTS[packed.dtype], flat.numel(), pointer(packed.bits), pointer(flat))
    run("unpacking spikes", status)
    return out
