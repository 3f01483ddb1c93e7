"""What an engine will take for a layer on this machine: a few constants, measured once and kept in the cache folder.

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
import torch.nn.functional as F

from spikeprune.runtime import native
from spikeprune.runtime.compile import program as P
from spikeprune.runtime.compile.layers import Layer, Network
from spikeprune.runtime.compile.schedule import channels_last, entries, packings, spatial

log = logging.getLogger("spikeprune")

# No processor core sums faster than this many dense multiply-adds a nanosecond; a bound, not an estimate.
FASTEST_DENSE = 120.0
MARGIN = 1.15  # dense and event must look this much faster before they are taken: estimates are no better than that


@dataclass
class Rates:
    """Nanoseconds on one thread."""

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
    start = P.OpSpec(P.POINTWISE, 2, shape, ("busy input",), spikes=-1 if real else 0, real=0 if real else -1)
    start.arrays = {"scale": vector, "bias": vector}  # every input neuron fires at every step
    op = P.OpSpec(P.CONV_REAL if real else P.CONV_LOOKUP, 0, shape, ("calibration",), spikes=1)
    op.kernel, op.pad = (kernel, kernel), (kernel // 2, kernel // 2)
    op.sparse, op.planes = s, ((1.0, 1),)
    op.arrays = {"bias": vector} | entries(op, engine)
    start.neuron = op.neuron = {"decay": vector / 2, "threshold": vector / 2, "reset": 0 * vector, "start": 0 * vector}
    buffers = [
        P.BufferSpec(0, P.REAL if real else P.WORDS, shape, kernel // 2),
        P.BufferSpec(1, P.WORDS, shape),
        P.BufferSpec(2, P.STATIC, shape),
    ]
    run = P.Program(library, [start, op], buffers)
    x = torch.ones(1, *shape)
    tiles = size * size / (2 * library.sp_lanes())
    return best_time(lambda: run.run({2: x}, T, 1, 1), 15) / tiles


def _one_pack(library: ctypes.CDLL) -> float:
    shape = (32, 16, 16)
    vector = np.ones(32, np.float32)
    op = P.OpSpec(P.POINTWISE, 0, shape, ("calibration",), real=1, arrays={"scale": vector, "bias": vector})
    run = P.Program(library, [op], [P.BufferSpec(0, P.WORDS, shape), P.BufferSpec(1, P.EXTERNAL, shape, output=True)])
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


def dense_time(layer: Layer, images: int) -> float:
    """Nanoseconds of PyTorch's dense layer on `images` images (steps included)."""
    weight = layer.tensors["weight"]
    if layer.kind == "linear":
        key, shape = f"linear {tuple(weight.shape)}", (images, weight.shape[1])
    else:
        o = layer.options
        h, w = _input_size(layer)
        key = f"conv {tuple(weight.shape)} {o['stride']} {o['padding']} {o['dilation']} {o['groups']} {h} {w}"
        shape = (images, weight.shape[1] * o["groups"], h, w)
    key = f"{_machine()} {key} {images}"
    with _lock:
        if key in _dense:
            return _dense[key]
    x = torch.zeros(shape)
    if layer.kind == "linear":
        spent = best_time(lambda: F.linear(x, weight), 3)
    else:
        o = layer.options
        form = torch.channels_last if channels_last(layer) else torch.contiguous_format
        x, weight = x.contiguous(memory_format=form), weight.contiguous(memory_format=form)
        spent = best_time(lambda: F.conv2d(x, weight, None, o["stride"], o["padding"], o["dilation"], o["groups"]), 3)
    with _lock:
        _dense[key] = spent
        if _machine() in _rates:
            _write()
    return spent


def _input_size(layer: Layer) -> tuple[int, int]:
    """The smallest input map that gives the layer's output map."""
    o = layer.options
    kernel = layer.tensors["weight"].shape[2:]
    sizes = [
        (out - 1) * s + d * (k - 1) + 1 - 2 * p
        for out, s, d, k, p in zip(layer.shape[1:], o["stride"], o["dilation"], kernel, o["padding"], strict=True)
    ]
    return sizes[0], sizes[1]


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
        """The best of the engines that skip zeros."""
        return min(self.lookup, self.event, self.real)


def choose(network: Network, library: ctypes.CDLL, still: bool, T: int, N: int) -> dict[int, Choice]:
    """The engine of every conv and linear layer, for batches of about N images of T steps."""
    constants = rates(library)
    static = network.static(still)
    packed = packings(network, static)
    block = library.sp_block(T)
    blocks = math.ceil(T / block)
    flat = {layer.output: layer.inputs[0] for layer in network.layers if layer.kind == "flatten"}
    shapes = {0: network.input_shape} | {layer.output: layer.shape for layer in network.layers}
    threads = max(1, torch.get_num_threads())
    found: dict[int, Choice] = {}
    for place, layer in enumerate(network.layers):
        if layer.kind not in ("conv", "linear"):
            continue
        source = layer.inputs[0]
        if layer.kind == "linear" and source in flat:
            source = flat[source] if flat[source] in packed or source not in packed else source
        if layer.output in static:
            found[place] = Choice("dense", math.inf, math.inf, math.inf, 0.0)
            continue
        weight = layer.tensors["weight"]
        kept = int(torch.count_nonzero(weight))
        channels, h, w = spatial(layer.shape)
        n = min(N, P.CHUNK)
        positions = n * h * w
        tile = 2 * constants.lanes
        tiles = math.ceil(positions / tile) * N / n
        columns = weight[0].numel() * (layer.options["groups"] if layer.kind == "conv" else 1)
        lookup = event = math.inf
        if source in packed and columns * len(packed[source].planes) < P.MAX_COLUMNS:
            planes = packed[source].planes
            some, four = network.busy.get(source, (1.0, 1.0))
            steps = math.ceil(block / max(1, min(block, tile // min(tile, positions))))
            fixed = columns * len(planes) * constants.gather + channels * constants.finish
            one_event = constants.event + steps * constants.event_step
            first = kept if planes[0][1] > 1 else kept / 2 + channels / 4
            later = four * kept * one_event if len(planes) > 1 else 0.0
            lookup = tiles * blocks * (fixed + first * (constants.pair + steps * constants.step) + later)
            event = tiles * blocks * (fixed + some * kept * one_event + later)
        real = tiles * (
            columns * T * constants.gather_real + channels * blocks * constants.finish + kept * T * constants.multiply
        )
        if source in packed and math.isfinite(lookup):
            real = math.inf  # never better on what is packed
        work = weight.numel() * h * w * N * T / threads
        values = (math.prod(shapes[source]) + math.prod(layer.shape)) * N * T * constants.element / threads
        sparse = min(lookup, event, real) / threads
        dense = math.inf
        if sparse > work / FASTEST_DENSE:
            images = T * min(N, P.CHUNK)
            dense = dense_time(layer, images) * N / min(N, P.CHUNK) + values
        times = {"lookup": lookup / threads, "event": event / threads, "real": real / threads}
        if times["event"] * MARGIN > times["lookup"]:
            times["event"] = math.inf  # its estimate also hangs on the example, so it must win clearly
        engine = "dense" if dense * MARGIN < sparse else min(times, key=lambda name: times[name])
        found[place] = Choice(engine, **times, dense=dense)
    return found
