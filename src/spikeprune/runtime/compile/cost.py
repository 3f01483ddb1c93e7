"""Estimates the time of a layer in each engine, from a few constants that are measured once on this machine.

    lookup  tiles * (columns * gather + channels * finish + pairs * (pair + steps * step))
    event   tiles * (columns * gather + channels * finish + busy * weights * (event + steps * event_step))
    real    tiles * (columns * steps * gather_real + channels * finish + weights * steps * multiply)
    dense   PyTorch's own time on the layer's shape, plus packing and unpacking of what goes in and out

Dense times depend on the shape in ways no formula follows, so they are measured, but only where the sparse estimate
could lose.
"""

import ctypes
import hashlib
import json
import logging
import math
import os
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from spikeprune.runtime import native
from spikeprune.runtime.compile import program as P
from spikeprune.runtime.compile.network import LoweredLayer, LoweredNetwork, spatial
from spikeprune.runtime.compile.packing import packings
from spikeprune.runtime.compile.weighted import DenseCall, entries
from spikeprune.runtime.structs import EXTERNAL, REAL, STATIC, WORDS

log = logging.getLogger("spikeprune")

# No processor core sums faster than this many dense multiply-adds a nanosecond; a bound, not an estimate.
FASTEST_DENSE = 120.0
MARGIN = 1.15  # dense and event must look this much faster before they are taken: estimates are no better than that


@dataclass
class Rates:
    """The constants of the cost model (see the top of this file) on this machine: nanoseconds on one thread."""

    lanes: int  # floats in a vector; not a time
    gather: float  # one column of a tile
    finish: float  # one output channel of a tile: neuron and stores, per block of time
    pair: float  # one pair, whatever the number of steps
    step: float  # one pair and step
    event: float  # one weight of a channel that is not silent, whatever the number of steps
    event_step: float  # one such weight and step
    multiply: float  # one weight and step on real inputs
    gather_real: float  # one column and step of a real tile
    element: float  # one value packed or unpacked


_lock = threading.Lock()
_rates: dict[str, Rates] = {}
_dense: dict[str, float] = {}


def _machine() -> str:
    text = f"5 {native.cpu_name()} {native.isa()} {torch.__version__} {torch.get_num_threads()}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _store() -> Path:
    return native.cache_folder().parent / f"calibration-{_machine()}.json"


def _read() -> None:
    try:
        data = json.loads(_store().read_text())
        _rates.setdefault(_machine(), Rates(**data["rates"]))
        _dense.update({str(k): float(v) for k, v in data["dense"].items()})
    except (OSError, ValueError, KeyError, TypeError):
        return  # no calibration yet, or one of another version: measure again


def _write() -> None:
    machine = _machine()
    data = {"rates": asdict(_rates[machine]), "dense": {k: v for k, v in _dense.items() if k.startswith(machine)}}
    try:
        _store().parent.mkdir(parents=True, exist_ok=True)
        handle, scratch = tempfile.mkstemp(dir=_store().parent)
        with os.fdopen(handle, "w") as file:
            json.dump(data, file)
        os.replace(scratch, _store())
    except OSError as error:
        log.debug("calibration not kept: %s", error)


def best_time(function: Callable[[], object], repeats: int = 5) -> float:
    """Nanoseconds of the fastest of some calls: noise only ever adds.

    On one thread that is processor time, so that other programs on the same core are not counted.
    """
    clock = time.thread_time_ns if torch.get_num_threads() == 1 else time.perf_counter_ns
    function()
    best = math.inf
    for _ in range(repeats):
        start = clock()
        function()
        best = min(best, clock() - start)
    return best


def _one_conv(library: ctypes.CDLL, kernel: int, kept: int, T: int, engine: str = "lookup") -> float:
    """Nanoseconds per tile of a conv 32 -> 32 on 16x16 with `kept` weights in each channel."""
    rng = np.random.default_rng(0)
    channels, size = 32, 16
    columns = channels * kernel * kernel
    s = P.Sparse(
        np.arange(channels + 1, dtype=np.int32) * kept,
        np.concatenate([rng.choice(columns, kept, replace=False) for _ in range(channels)]),
        np.ones(channels * kept, np.float32),
        columns,
    )
    real = engine == "real"
    vector = np.ones(channels, np.float32)
    shape = (channels, size, size)
    start = P.OpSpec("pointwise", 2, shape, ("busy input",), spikes=-1 if real else 0, real=0 if real else -1)
    start.arrays = {"scale": vector, "bias": vector}  # every input neuron fires at every step
    op = P.OpSpec("conv_real" if real else "conv_lookup", 0, shape, ("calibration",), spikes=1)
    op.kernel, op.pad = (kernel, kernel), (kernel // 2, kernel // 2)
    op.sparse, op.planes = s, ((1.0, 1),)
    op.arrays = {"bias": vector} | entries(op, engine)
    start.neuron = op.neuron = {"decay": vector / 2, "threshold": vector / 2, "reset": 0 * vector, "start": 0 * vector}
    buffers = [
        P.BufferSpec(0, REAL if real else WORDS, shape, kernel // 2),
        P.BufferSpec(1, WORDS, shape),
        P.BufferSpec(2, STATIC, shape),
    ]
    run = P.Program(library, [start, op], buffers)
    x = torch.ones(1, *shape)
    tiles = size * size / (2 * library.sp_lanes())
    return best_time(lambda: run.run({2: x}, T, 1, 1), 15) / tiles


def _one_pack(library: ctypes.CDLL) -> float:
    shape = (32, 16, 16)
    vector = np.ones(32, np.float32)
    op = P.OpSpec("pointwise", 0, shape, ("calibration",), real=1, arrays={"scale": vector, "bias": vector})
    run = P.Program(library, [op], [P.BufferSpec(0, WORDS, shape), P.BufferSpec(1, EXTERNAL, shape, output=True)])
    return best_time(lambda: run.run({}, 4, 1, 1)) / (4 * math.prod(shape))


def _measure(library: ctypes.CDLL) -> Rates:
    few, many = 2, 96
    three, one = _one_conv(library, 3, few, 4), _one_conv(library, 1, few, 4)
    full, short = _one_conv(library, 3, many, 4), _one_conv(library, 3, many, 1)
    short_few = _one_conv(library, 3, few, 1)
    gather = max((three - one) / (32 * 8), 0.1)
    four = max((full - three) / (32 * (many - few) / 2), 0.1)
    single = max((short - short_few) / (32 * (many - few) / 2), 0.1)
    step = max((four - single) / 3, 0.05)
    events = {(k, T): _one_conv(library, 3, k, T, "event") for k in (few, many) for T in (1, 4)}
    event = {T: max((events[many, T] - events[few, T]) / (32 * (many - few)), 0.1) for T in (1, 4)}
    event_step = max((event[4] - event[1]) / 3, 0.05)
    real_few, real_many = _one_conv(library, 3, few, 4, "real"), _one_conv(library, 3, many, 4, "real")
    return Rates(
        lanes=library.sp_lanes(), gather=gather, finish=max((one - 32 * gather) / 32 - four, 1.0),
        pair=max(single - step, 0.0), step=step, event=max(event[1] - event_step, 0.0), event_step=event_step,
        multiply=max((real_many - real_few) / (32 * (many - few) * 4), 0.02),
        gather_real=max(real_few / (32 * 9 * 4), 0.1) / 2, element=_one_pack(library),
    )  # fmt: skip


def peak_adds(library: ctypes.CDLL) -> float:
    """Masked additions a nanosecond on one thread, at best: what more weights add to a layer in the first-level cache.

    As a slope between two layers, so that neither tiles nor neurons count.
    """
    few, many, T = 32, 288, 5
    spent = (min(_one_conv(library, 3, kept, T) for _ in range(5)) for kept in (many, few))
    return 32 * (many - few) * 2 * library.sp_lanes() * T / (next(spent) - next(spent))


def rates(library: ctypes.CDLL) -> Rates:
    """This machine's constants: from memory, from the cache folder, or measured now (a fraction of a second)."""
    with _lock:
        machine = _machine()
        if machine not in _rates:
            _read()
        if machine not in _rates:
            _rates[machine] = _measure(library)
            _write()
        return _rates[machine]


def dense_time(dense: DenseCall, images: int) -> float:
    """Nanoseconds of PyTorch's dense layer on `images` images times steps: a stored measurement, or a new one."""
    key = f"{_machine()} {dense.key} {images}"
    with _lock:
        if key in _dense:
            return _dense[key]
    spent = best_time(dense.run, 3)
    with _lock:
        _dense[key] = spent
        if _machine() in _rates:
            _write()
    return spent


@dataclass(frozen=True)
class Choice:
    """The engine of a layer and the times (nanoseconds a batch, one thread) that decided; inf: cannot or need not."""

    engine: str
    lookup: float
    event: float
    real: float
    dense: float

    @property
    def sparse(self) -> float:
        """Time of the fastest engine that skips zeros, in nanoseconds."""
        return min(self.lookup, self.event, self.real)


class Circumstances:
    """The circumstances of a layer's time, beside the layer itself: the network, T, the batch and this machine."""

    def __init__(self, network: LoweredNetwork, library: ctypes.CDLL, still: bool, T: int, N: int) -> None:
        self.T, self.N = T, N
        self.constants = rates(library)
        self.static = network.static(still)
        self.busy = network.busy
        self.packed = packings(network)
        self.reshaped = network.reshaped()
        self.shapes = network.shapes()
        self.block = library.sp_block(T)
        self.blocks = math.ceil(T / self.block)
        self.threads = max(1, torch.get_num_threads())

    def price(self, layer: LoweredLayer, source: int, columns: int, dense: Callable[[int], DenseCall]) -> Choice:
        """The best engine for a layer with a weight.

        Args:
            source: the value that its kernels read.
            columns: inputs of one output position, over all groups.
            dense: PyTorch's layer for a number of images; only made where the sparse estimate could lose.
        """
        if layer.output in self.static:
            return Choice("dense", math.inf, math.inf, math.inf, 0.0)
        weight = layer.tensors["weight"]
        _, h, w = spatial(layer.shape)
        lookup, event = self._packed_times(layer, source, columns)
        real = self._real_time(layer, columns)
        if source in self.packed and math.isfinite(lookup):
            real = math.inf  # never better on what is packed
        work = weight.numel() * h * w * self.N * self.T / self.threads
        sparse = min(lookup, event, real) / self.threads
        dense_ns = math.inf
        if sparse > work / FASTEST_DENSE:
            images = min(self.N, P.CHUNK)
            sizes = math.prod(self.shapes[source]) + math.prod(layer.shape)
            values = sizes * self.N * self.T * self.constants.element / self.threads
            dense_ns = dense_time(dense(self.T * images), self.T * images) * self.N / images + values
        times = {"lookup": lookup / self.threads, "event": event / self.threads, "real": real / self.threads}
        if times["event"] * MARGIN > times["lookup"]:
            times["event"] = math.inf  # its estimate also hangs on the example, so it must win clearly
        engine = "dense" if dense_ns * MARGIN < sparse else min(times, key=lambda name: times[name])
        return Choice(engine, **times, dense=dense_ns)

    def _tiles(self, layer: LoweredLayer) -> tuple[float, int, int]:
        """Number of tiles of a batch, positions of a chunk, lanes of a tile."""
        _, h, w = spatial(layer.shape)
        n = min(self.N, P.CHUNK)
        lanes = 2 * self.constants.lanes
        return math.ceil(n * h * w / lanes) * self.N / n, n * h * w, lanes

    def _packed_times(self, layer: LoweredLayer, source: int, columns: int) -> tuple[float, float]:
        """Nanoseconds of lookup and event on one thread; inf where the input is not packed."""
        if source not in self.packed or columns * len(self.packed[source].planes) >= P.MAX_COLUMNS:
            return math.inf, math.inf
        c, planes = self.constants, self.packed[source].planes
        tiles, positions, lanes = self._tiles(layer)
        kept, channels = int(torch.count_nonzero(layer.tensors["weight"])), layer.shape[0]
        some, four = self.busy.get(source, (1.0, 1.0))
        steps = math.ceil(self.block / max(1, min(self.block, lanes // min(lanes, positions))))
        fixed = columns * len(planes) * c.gather + channels * c.finish
        one_event = c.event + steps * c.event_step
        first = kept if planes[0][1] > 1 else kept / 2 + channels / 4
        later = four * kept * one_event if len(planes) > 1 else 0.0
        lookup = tiles * self.blocks * (fixed + first * (c.pair + steps * c.step) + later)
        return lookup, tiles * self.blocks * (fixed + some * kept * one_event + later)

    def _real_time(self, layer: LoweredLayer, columns: int) -> float:
        c = self.constants
        kept = int(torch.count_nonzero(layer.tensors["weight"]))
        return self._tiles(layer)[0] * (
            columns * self.T * c.gather_real + layer.shape[0] * self.blocks * c.finish + kept * self.T * c.multiply
        )


def choose(network: LoweredNetwork, library: ctypes.CDLL, still: bool, T: int, N: int) -> dict[int, Choice]:
    """The engine of every layer that has several, by its place, for batches of about N images of T steps."""
    here = Circumstances(network, library, still, T, N)
    priced = {place: layer.op.price(layer, here) for place, layer in enumerate(network.layers)}
    return {place: choice for place, choice in priced.items() if choice is not None}
