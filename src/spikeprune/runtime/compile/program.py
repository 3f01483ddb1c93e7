"""Native programs: weights in the kernels' order, and one call for many layers."""

import ctypes
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spikeprune.core.errors import RunFailed
from spikeprune.runtime import structs
from spikeprune.runtime.structs import EVENT, EXTERNAL, PAIR, REAL, STATIC, WEIGHT, WORDS, BufferStruct, OpStruct

CHUNK = 8  # images that go through a program together: fills a tile on 2x2 maps, keeps what lies between in cache

MAX_COLUMNS = 65535  # what fits in a pair's 16-bit places


@dataclass
class Sparse:
    """The non-zero weights of a layer in compressed rows (CSR), one row for each output channel.

    starts: where each row begins. columns: input channel * taps + tap. values: the weights.
    """

    starts: np.ndarray
    columns: np.ndarray
    values: np.ndarray
    n_columns: int


def sparse(weight: Tensor, groups: int) -> Sparse:
    """The non-zero weights of [O, I / groups, kh, kw]."""
    dense = weight.detach().numpy().reshape(weight.shape[0], -1)
    rows, columns = np.nonzero(dense)
    taps = weight[0, 0].numel()
    group = rows // (weight.shape[0] // groups)
    starts = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=weight.shape[0]))])
    width = weight.shape[1] * taps
    return Sparse(starts.astype(np.int32), columns + group * width, dense[rows, columns], width * groups)


def real_weights(s: Sparse) -> tuple[np.ndarray, np.ndarray]:
    """Row starts and weights for inputs of any value."""
    weights = np.empty(len(s.values), WEIGHT)
    weights["value"], weights["column"] = s.values, s.columns
    return s.starts, weights


def lookup_pairs(
    s: Sparse, planes: Sequence[tuple[float, int]], used: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Row starts and pairs for inputs packed in two bits.

    Args:
        planes: (factor, largest value) of each plane; the input is the sum of factor * value. Spikes are [(1, 1)].
            Values of one bit go two weights at a time; a value up to 3 fills the index alone, as weights w and 2 w.
        used: how many of the planes to list, if not all; the others are left to events.
    """
    zero = s.n_columns * len(planes)
    counts = np.diff(s.starts)
    rows = np.repeat(np.arange(len(counts)), counts)
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    for place, (factor, largest) in enumerate(planes[:used]):
        values = (s.values * np.float32(factor)).astype(np.float32)
        columns = s.columns + place * s.n_columns
        if largest > 1:
            pairs = np.zeros(len(values), PAIR)
            pairs["a"], pairs["b"] = values, 2 * values
            pairs["first"], pairs["second"] = columns, zero
            parts.append((rows, pairs))
            continue
        pair_starts = np.concatenate([[0], np.cumsum((counts + 1) // 2)])
        within = np.arange(len(values)) - np.repeat(s.starts[:-1], counts)
        at, second = pair_starts[rows] + within // 2, within % 2 == 1
        pairs = np.zeros(pair_starts[-1], PAIR)
        pairs["second"] = zero
        pairs["first"][at[~second]], pairs["a"][at[~second]] = columns[~second], values[~second]
        pairs["second"][at[second]], pairs["b"][at[second]] = columns[second], values[second]
        parts.append((np.repeat(np.arange(len(counts)), (counts + 1) // 2), pairs))
    if not parts:
        return np.zeros(len(counts) + 1, np.int32), np.zeros(1, PAIR)
    all_rows = np.concatenate([rows for rows, _ in parts])
    order = np.argsort(all_rows, kind="stable")
    pairs = np.concatenate([pairs for _, pairs in parts])[order]
    starts = np.concatenate([[0], np.cumsum(np.bincount(all_rows, minlength=len(counts)))])
    return starts.astype(np.int32), pairs


def event_lists(s: Sparse, factor: float) -> tuple[np.ndarray, np.ndarray]:
    """Column starts and weights by column, for inputs that are read event by event."""
    order = np.argsort(s.columns, kind="stable")
    rows = np.repeat(np.arange(len(s.starts) - 1), np.diff(s.starts))
    events = np.empty(len(order), EVENT)
    events["value"], events["row"] = s.values[order] * np.float32(factor), rows[order]
    starts = np.concatenate([[0], np.cumsum(np.bincount(s.columns, minlength=s.n_columns))])
    return starts.astype(np.int32), events


@dataclass
class BufferSpec:
    """A buffer of a program. `value` is the number of the value it holds; external ones are tensors of PyTorch."""

    value: int
    kind: int
    shape: tuple[int, int, int]
    pad: int = 0
    output: bool = False  # external: allocated by the call and handed back
    channels_last: bool = False


@dataclass
class OpSpec:
    """One operation of the engine by its kernel's name; `arrays` and `neuron` keep alive what the struct points to."""

    kernel_name: str
    input: int
    shape: tuple[int, int, int]
    layers: tuple[str, ...]
    spikes: int = -1
    real: int = -1
    residual: int = -1
    first_event: int = 0
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    pad: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    neuron: dict[str, np.ndarray] = field(default_factory=dict)
    soft: bool = False
    sparse: Sparse | None = None  # a conv's kept weights and its input's planes, until they are packed for the kernel
    planes: tuple[tuple[float, int], ...] = ()

    def fill(self, op: OpStruct, library: ctypes.CDLL) -> None:
        """Writes the operation into a struct; the library knows the number of its kernel."""
        op.code = library.sp_code(self.kernel_name.encode())
        if op.code < 0:
            raise RunFailed(f"the engine has no kernel {self.kernel_name!r}; a file kernels/engine_*.cpp registers it")
        op.input, op.spikes, op.real = self.input, self.spikes, self.real
        op.residual, op.first_event = self.residual, self.first_event
        op.kernel_h, op.kernel_w = self.kernel
        op.stride_h, op.stride_w = self.stride
        op.pad_h, op.pad_w = self.pad
        op.dilation_h, op.dilation_w = self.dilation
        op.channels, op.height, op.width = self.shape
        for name, array in self.arrays.items():
            setattr(op, name, array.ctypes.data)
        for name, array in self.neuron.items():
            setattr(op.neuron, name, array.ctypes.data)
        op.neuron.soft = self.soft


class Program:
    """Operations that run in one native call. Calls may come from several threads at once."""

    def __init__(self, library: ctypes.CDLL, ops: list[OpSpec], buffers: list[BufferSpec]) -> None:
        self.library = library
        self.ops = ops
        self.buffers = buffers
        self.structs = (OpStruct * len(ops))()
        for struct, op in zip(self.structs, ops, strict=True):
            op.fill(struct, library)
        self.lock = threading.Lock()
        self.free: dict[tuple[int, int], list[tuple[Any, Tensor]]] = {}  # (T, images at once) -> idle workspaces

    def _workspace(self, T: int, chunk: int) -> tuple[Any, Tensor]:
        with self.lock:
            idle = self.free.setdefault((T, chunk), [])
            if idle:
                return idle.pop()
        buffers = (BufferStruct * len(self.buffers))()
        offsets: list[int] = []
        total = 0
        for struct, spec in zip(buffers, self.buffers, strict=True):
            struct.kind, struct.pad = spec.kind, spec.pad
            struct.channels, struct.height, struct.width = spec.shape
            offsets.append(total)
            if spec.kind in (WORDS, REAL):
                size = self.library.sp_bytes(ctypes.byref(struct), T, chunk)
                structs.run("a compiled model", 2 if size < 0 else 0)
                total += (size + 63) // 64 * 64
        # Zeroed once: the kernels write inside of the padding only, so it stays zero from call to call.
        memory = torch.zeros(total + 64, dtype=torch.uint8)
        base = (memory.data_ptr() + 63) // 64 * 64
        for struct, spec, offset in zip(buffers, self.buffers, offsets, strict=True):
            if spec.kind in (WORDS, REAL):
                struct.data = base + offset
        return buffers, memory

    def run(self, values: dict[int, Tensor], T: int, N: int, threads: int) -> None:
        """Reads and writes external tensors in `values` (number -> [T, N, C, H, W], or [N, C, H, W] if static)."""
        chunk = min(CHUNK, N)
        buffers, _ = workspace = self._workspace(T, chunk)
        held: list[Tensor] = []
        for struct, spec in zip(buffers, self.buffers, strict=True):
            if spec.kind not in (EXTERNAL, STATIC):
                continue
            if spec.output:
                c, h, w = spec.shape
                shape = (T, N, h, w, c) if spec.channels_last else (T, N, c, h, w)
                tensor = torch.empty(shape)
                values[spec.value] = tensor.movedim(-1, -3) if spec.channels_last else tensor
                struct.channels_last = spec.channels_last
            else:
                tensor = values[spec.value]
                struct.channels_last = len(tensor.shape) > 3 and not tensor.is_contiguous() and last(tensor)
                if not struct.channels_last:
                    tensor = tensor.contiguous()
            held.append(tensor)
            struct.data = tensor.data_ptr()
        status = self.library.sp_run(self.structs, len(self.ops), buffers, len(self.buffers), T, N, chunk, threads)
        with self.lock:
            self.free[T, chunk].append(workspace)
        structs.run("a compiled model", status)


def last(tensor: Tensor) -> bool:
    """Whether [..., C, H, W] lies in memory as [..., H, W, C]."""
    return tensor.movedim(-3, -1).is_contiguous()
