"""Which engine runs which layer, and in what order: neighbouring native layers become one program.

Engines of a conv or linear layer:
    lookup  kept weights only, two at a time, on spikes packed in bits
    event   kept weights of the input channels that fired somewhere in a tile, on spikes packed in bits
    real    kept weights only, on inputs of any value
    dense   PyTorch's convolution with the folded weights
"""

import ctypes
import math
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from spikeprune.runtime.compile import layers as L
from spikeprune.runtime.compile import program as P
from spikeprune.runtime.compile.layers import Layer, Network
from spikeprune.runtime.compile.program import BufferSpec, OpSpec, Program

ENGINES = ("lookup", "event", "real", "dense")
PACKED = ("lookup", "event")
MAX_PLANE_SUM = 15  # two planes of two bits


@dataclass
class Packing:
    """How a value is packed into words: (factor, largest value) of each plane."""

    planes: tuple[tuple[float, int], ...]


SPIKES = Packing(((1.0, 1),))


def packings(network: Network, static: set[int]) -> dict[int, Packing]:
    """The values that can be kept packed in bits: spikes, their maxima, their averages over small windows."""
    found: dict[int, Packing] = {}
    for layer in network.layers:
        source = found.get(layer.inputs[0])
        if layer.kind == "neuron":
            found[layer.output] = SPIKES
        elif layer.kind == "flatten" and source is not None and len(source.planes) == 1:
            found[layer.output] = source
        elif layer.kind == "pool" and source is SPIKES and native_pool(layer):
            window = math.prod(layer.options["kernel"])
            if layer.options["mode"] == "max":
                found[layer.output] = SPIKES
            elif window <= MAX_PLANE_SUM:
                divisor = layer.options["divisor"] or window
                low, high = (1.0 / divisor, min(3, window)), (4.0 / divisor, window // 4)
                found[layer.output] = Packing((low, high))
    return found


def native_pool(layer: Layer) -> bool:
    """Whether the native pooling computes what this layer asks for."""
    o = layer.options
    padded = o["mode"] == "avg" and any(o["padding"]) and not o["count_pad"]
    return o["mode"] in ("max", "avg") and not o["ceil"] and not padded


def spatial(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(C, H, W) of a value; features stand on a map of one position."""
    return shape if len(shape) == 3 else (shape[0], 1, 1)  # pyright: ignore[reportReturnType]


def channels_last(layer: Layer) -> bool:
    """Whether PyTorch's convolution is faster on this layer with channels last: all but thin inputs and tiny maps."""
    _, h, w = spatial(layer.shape)
    return layer.kind == "conv" and layer.tensors["weight"].shape[1] >= 8 and h * w > 4


@dataclass
class DenseStage:
    """A layer that PyTorch computes."""

    layer: Layer
    static: bool

    def __post_init__(self) -> None:
        self.last = channels_last(self.layer)
        if self.last:
            weight = self.layer.tensors["weight"].contiguous(memory_format=torch.channels_last)
            self.layer = replace(self.layer, tensors={**self.layer.tensors, "weight": weight})

    def run(self, values: dict[int, Tensor], T: int, N: int, threads: int) -> None:
        inputs = [values[i] for i in self.layer.inputs]
        if self.last:
            x = inputs[0] if self.static else inputs[0].flatten(0, 1)
            y = L.conv(x.contiguous(memory_format=torch.channels_last), self.layer)
            values[self.layer.output] = y if self.static else y.unflatten(0, (T, N))
        else:
            values[self.layer.output] = L.compute(self.layer, inputs, self.static, T)


@dataclass
class NativeStage:
    """Neighbouring native layers; `inputs` and `outputs` are the values that come from and go to PyTorch."""

    program: Program
    shapes: dict[int, tuple[int, ...]]
    inputs: tuple[int, ...]

    def run(self, values: dict[int, Tensor], T: int, N: int, threads: int) -> None:
        self.program.run(values, T, N, threads)
        for value, shape in self.shapes.items():
            if len(shape) == 1:
                values[value] = values[value].view(T, N, *shape)


Stage = DenseStage | NativeStage


@dataclass
class Schedule:
    """Stages in order. `last_use` tells when a value's tensor may be let go."""

    stages: list[Stage]
    notes: dict[int, str] = field(default_factory=dict)  # place of a layer -> engine in words

    def run(self, x: Tensor, T: int, N: int, threads: int) -> dict[int, Tensor]:
        values = {0: x}
        for stage in self.stages:
            stage.run(values, T, N, threads)
        return values


class Builder:
    """Turns a network and the choice of engines into a schedule."""

    def __init__(
        self,
        network: Network,
        library: ctypes.CDLL | None,
        engines: dict[int, str],
        still: bool,
        watched: set[int] | None = None,
    ) -> None:
        self.network = network
        self.library = library
        self.engines = engines  # place of a conv or linear layer -> engine
        self.static = network.static(still)
        self.readers = network.readers()
        self.packed = packings(network, self.static)
        self.shapes: dict[int, tuple[int, ...]] = {0: network.input_shape}
        self.shapes |= {layer.output: layer.shape for layer in network.layers}
        self.watched = watched or set()  # values that the caller wants as tensors too
        self.schedule = Schedule([])
        self.done: set[int] = set()  # places
        self.maker = {layer.output: place for place, layer in enumerate(network.layers)}
        self.flat = {layer.output: layer.inputs[0] for layer in network.layers if layer.kind == "flatten"}
        self._fresh()

    def _fresh(self) -> None:
        self.ops: list[OpSpec] = []
        self.buffers: list[BufferSpec] = []
        self.words: dict[int, int] = {}  # value -> buffer of the program under construction
        self.reals: dict[int, int] = {}
        self.outside: dict[int, int] = {}
        self.tensors: set[int] = getattr(self, "tensors", {0})  # values that exist as tensors

    def build(self) -> Schedule:
        for place, layer in enumerate(self.network.layers):
            if place in self.done:
                continue
            if not self._native(place, layer):
                self._flush({self.flat.get(v, v) for v in layer.inputs})
                for value in layer.inputs:  # a flatten that was left to a native layer, which then could not run
                    if value in self.flat and value not in self.tensors:
                        self.schedule.stages.append(DenseStage(self.network.layers[self.maker[value]], False))
                        self.tensors.add(value)
                self.schedule.stages.append(DenseStage(layer, all(v in self.static for v in layer.inputs)))
                self.schedule.notes[place] = "dense" if layer.kind in ("conv", "linear") else "PyTorch"
                self.tensors.add(layer.output)
            self.done.add(place)
        self._flush({self.network.output})
        return self.schedule

    # Which layers go together ------------------------------------------------------------------------------------

    def _native(self, place: int, layer: Layer) -> bool:
        if self.library is None or layer.output in self.static or layer.kind in ("reduce", "repeat"):
            return False
        if layer.kind in ("conv", "linear"):
            engine = self.engines.get(place, "dense")
            return engine != "dense" and self._conv(place, layer, engine)
        if layer.kind == "pool":
            return self._pool(place, layer)
        if layer.kind == "flatten":
            return self._flatten(place, layer)
        if layer.kind in ("affine", "neuron", "add", "select"):
            return self._pointwise(place, layer)
        return False

    def _only_reader(self, value: int) -> tuple[int, Layer] | None:
        readers = self.readers[value]
        if len(readers) != 1 or value == self.network.output or value in self.watched:
            return None
        return readers[0], self.network.layers[readers[0]]

    def _finish(self, place: int, layer: Layer, op: OpSpec) -> None:
        """Lets `op`, which computes `layer`'s output, also do what directly follows: add, affine, neuron."""
        value = layer.output
        follower = self._only_reader(value)
        if follower is not None and follower[1].kind == "add" and op.residual < 0:
            other = next((v for v in follower[1].inputs if v != value), value)
            if other != value and self._available(other):
                op.residual = self._input(other)
                self._join(op, *follower)
                value = follower[1].output
                follower = self._only_reader(value)
        follow = [(p, self.network.layers[p]) for p in self.readers[value]]
        scale = bias = None
        affine = next(((p, a) for p, a in follow if a.kind == "affine" and a.inputs[0] == value), None)
        neuron = next(((p, a) for p, a in follow if a.kind == "neuron"), None)
        source = value
        if neuron is None and affine is not None and affine[0] not in self.done:
            after = self._only_reader(affine[1].output)
            if after is not None and after[1].kind == "neuron":
                scale, bias = affine[1].tensors["scale"].double(), affine[1].tensors["bias"].double()
                self._join(op, *affine)
                neuron, source = after, affine[1].output
        alone = self._only_reader(value) is not None
        if neuron is None or not alone:
            self._output(op, value)
        if neuron is None or neuron[0] in self.done:
            return
        assert source in neuron[1].inputs
        p = neuron[1].tensors
        gain, shift = p["gain"].double(), p["shift"].double()
        scale, bias = (gain, shift) if scale is None or bias is None else (gain * scale, gain * bias + shift)
        if alone and op.residual < 0 and op.code != P.POOL:
            op.arrays = _scaled(op, scale, bias)
        elif not (bool((scale == 1).all()) and bool((bias == 0).all())):
            op.arrays |= {"post_scale": _array(scale), "post_bias": _array(bias)}
        self._join(op, *neuron)
        op.neuron, op.soft = _neuron(neuron[1]), neuron[1].options["soft"]
        op.spikes = self._words(neuron[1].output)

    def _join(self, op: OpSpec, place: int, layer: Layer) -> None:
        op.layers = (*op.layers, layer.name)
        self.done.add(place)
        self.schedule.notes[place] = f"fused into {op.layers[0]}"

    def _conv(self, place: int, layer: Layer, engine: str) -> bool:
        source = layer.inputs[0]
        weight = layer.tensors["weight"]
        o = layer.options
        if layer.kind == "linear":
            base = self.flat.get(source, source)
            weight = weight.view(weight.shape[0], *spatial(self.shapes[base]))
            o = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1}
            source = base
        lookup = engine in PACKED
        packed = self.packed.get(source)
        if lookup and (packed is None or not self._available(source)):
            return False
        if lookup and packed is not SPIKES and source not in self.words:
            return False  # sums that were already unpacked
        s = P.sparse(weight, o["groups"])
        if lookup and s.n_columns * len(self.packed[source].planes) >= P.MAX_COLUMNS:
            return False
        op = OpSpec(
            P.CONV_LOOKUP if lookup else P.CONV_REAL, self._input(source, words=lookup, pad=o["padding"]),
            spatial(layer.shape), (layer.name,), kernel=(weight.shape[2], weight.shape[3]), stride=o["stride"],
            pad=o["padding"], dilation=o["dilation"],
        )  # fmt: skip
        op.sparse, op.planes = s, self.packed[source].planes if lookup else ()
        op.arrays = {"bias": _array(layer.tensors["bias"])}
        self.schedule.notes[place] = engine
        if "scale" in layer.tensors:  # whole numbers: summed exactly, scaled behind the sum
            op.arrays["scale"] = _array(layer.tensors["scale"])
        self._finish(place, layer, op)
        op.arrays |= entries(op, engine)
        self.ops.append(op)
        return True

    def _pointwise(self, place: int, layer: Layer) -> bool:
        """An affine, add or neuron that follows no native layer."""
        if any(len(self.shapes[v]) != len(layer.shape) for v in layer.inputs):
            return False
        if layer.kind == "add" and any(v in self.static for v in layer.inputs):
            return False
        channels = layer.shape[0]
        shape = spatial(layer.shape)
        op = OpSpec(P.POINTWISE, self._input(layer.inputs[0]), shape, (layer.name,))
        one, zero = torch.ones(channels), torch.zeros(channels)
        op.arrays = {"scale": _array(one), "bias": _array(zero)}
        self.schedule.notes[place] = "native"
        if layer.kind == "neuron":
            p = layer.tensors
            op.arrays = {"scale": _array(p["gain"]), "bias": _array(p["shift"])}
            op.neuron, op.soft = _neuron(layer), layer.options["soft"]
            op.spikes = self._words(layer.output)
        else:
            if layer.kind == "affine":
                op.arrays = {"scale": _array(layer.tensors["scale"]), "bias": _array(layer.tensors["bias"])}
            elif layer.kind == "select":
                op.arrays["map"] = layer.tensors["index"].numpy().astype(np.int32)
            else:
                op.residual = self._input(layer.inputs[1])
            self._finish(place, layer, op)
        self.ops.append(op)
        return True

    def _pool(self, place: int, layer: Layer) -> bool:
        source = layer.inputs[0]
        o = layer.options
        if not native_pool(layer) or len(layer.shape) != 3 or not self._available(source):
            return False
        packed = self.packed.get(source) is SPIKES
        maximum = o["mode"] == "max"
        if packed and maximum:
            kind = P.POOL_MAX
        elif packed and layer.output in self.packed and self._wanted_packed(layer.output):
            kind = P.POOL_PLANES
        else:
            kind = P.POOL_MAX if maximum else P.POOL_AVERAGE
        divisor = o["divisor"] or math.prod(o["kernel"])
        op = OpSpec(
            P.POOL, self._input(source, words=packed, pad=o["padding"]), layer.shape, (layer.name,), pool_kind=kind,
            kernel=o["kernel"], stride=o["stride"], pad=o["padding"],
        )  # fmt: skip
        op.arrays = {"scale": np.full(layer.shape[0], 1.0 / divisor, np.float32)}
        if packed and kind != P.POOL_AVERAGE:
            op.spikes = self._words(layer.output)
        else:
            op.real = self._real(layer.output)
        self.schedule.notes[place] = "native"
        self.ops.append(op)
        return True

    def _wanted_packed(self, value: int) -> bool:
        """Whether every reader of a pooled value takes it packed."""
        if value == self.network.output or value in self.watched:
            return False
        readers = [p for v in (value, *(f for f, base in self.flat.items() if base == value)) for p in self.readers[v]]
        return all(
            self.network.layers[p].kind == "flatten"
            or (self.network.layers[p].kind in ("conv", "linear") and self.engines.get(p) in PACKED)
            for p in readers
        )

    def _flatten(self, place: int, layer: Layer) -> bool:
        """Nothing to do where the next layer reads the map itself."""
        linear = all(
            self.network.layers[p].kind == "linear" and self.engines.get(p, "dense") != "dense"
            for p in self.readers[layer.output]
        )
        if linear and self.readers[layer.output] and layer.output != self.network.output:
            self.schedule.notes[place] = "native"
            return True
        return False

    # Buffers -----------------------------------------------------------------------------------------------------

    def _available(self, value: int) -> bool:
        return value in self.words or value in self.reals or value in self.tensors

    def _new(self, spec: BufferSpec) -> int:
        self.buffers.append(spec)
        return len(self.buffers) - 1

    def _words(self, value: int) -> int:
        c, h, w = spatial(self.shapes[value])
        planes = len(self.packed[value].planes)
        self.words[value] = self._new(BufferSpec(value, P.WORDS, (c * planes, h, w)))
        return self.words[value]

    def _real(self, value: int) -> int:
        self.reals[value] = self._new(BufferSpec(value, P.REAL, spatial(self.shapes[value])))
        return self.reals[value]

    def _output(self, op: OpSpec, value: int) -> None:
        op.real = self._real(value)

    def _input(self, value: int, words: bool | None = None, pad: tuple[int, int] = (0, 0)) -> int:
        """The buffer that holds a value for a reader that wants words, reals, or (None) whatever there is."""
        padding = max(pad)
        if words is not False and value in self.words:
            index = self.words[value]
        elif words is not True and value in self.reals:
            index = self.reals[value]
        elif words is None and (value in self.outside or value in self.tensors):
            return self._external(value)
        else:
            index = self._convert(value, words is True)
        self.buffers[index].pad = max(self.buffers[index].pad, padding)
        return index

    def _external(self, value: int) -> int:
        if value not in self.outside:
            kind = P.STATIC if value in self.static else P.EXTERNAL
            self.outside[value] = self._new(BufferSpec(value, kind, spatial(self.shapes[value])))
        return self.outside[value]

    def _convert(self, value: int, words: bool) -> int:
        """Copies a value between its forms: a tensor's spikes are packed by a neuron that fires where x >= 1/2."""
        shape = spatial(self.shapes[value])
        op = OpSpec(P.POINTWISE, self._input(value), shape, ())
        ones = np.ones(shape[0], np.float32)
        op.arrays = {"scale": ones, "bias": 0 * ones}
        if words:
            op.neuron = {"decay": 0 * ones, "threshold": ones / 2, "reset": 0 * ones, "start": 0 * ones}
            op.spikes = self._words(value)
        else:
            op.real = self._real(value)
        self.ops.append(op)
        return op.spikes if words else op.real

    def _flush(self, wanted: set[int]) -> None:
        """Ends the program under construction; everything that is read later leaves it as a tensor."""
        if self.ops:
            made = [v for v in {**self.words, **self.reals} if v not in self.tensors]
            leaving = [v for v in made if v in wanted or v in self.watched or self._read_later(v)]
            for value in leaving:
                shape = spatial(self.shapes[value])
                op = OpSpec(P.POINTWISE, self._input(value), shape, ())
                op.arrays = {"scale": np.ones(shape[0], np.float32), "bias": np.zeros(shape[0], np.float32)}
                dense = [self.network.layers[p] for p in self.readers[value] if p not in self.done]
                last = any(channels_last(layer) for layer in dense)
                op.real = self._new(BufferSpec(value, P.EXTERNAL, shape, output=True, channels_last=last))
                self.ops.append(op)
            self._direct()
            program = Program(self.library, self.ops, self.buffers)  # pyright: ignore[reportArgumentType]
            shapes = {v: self.shapes[v] for v in leaving}
            self.schedule.stages.append(NativeStage(program, shapes, tuple(self.outside)))
            self.tensors |= set(leaving)
        self._fresh()

    def _read_later(self, value: int) -> bool:
        users = [p for p in self.readers.get(value, ()) if p not in self.done]
        users += [
            p for flat, base in self.flat.items() if base == value for p in self.readers[flat] if p not in self.done
        ]
        return bool(users) or value == self.network.output

    def _direct(self) -> None:
        """Lets an operation write its real result straight into the tensor that a copy would fill."""
        readers: dict[int, int] = {}
        for op in self.ops:
            for index in (op.input, op.residual):
                readers[index] = readers.get(index, 0) + 1
        for copy in [op for op in self.ops if not op.layers and op.spikes < 0]:
            makers = [op for op in self.ops if op.real == copy.input and op is not copy]
            if len(makers) == 1 and readers[copy.input] == 1 and self.buffers[copy.real].output:
                makers[0].real = copy.real
                self.buffers[copy.input].kind = P.EXTERNAL  # unused from now on
                self.buffers[copy.input] = BufferSpec(-1, P.WORDS, (0, 0, 0))
                self.ops.remove(copy)


def _neuron(layer: Layer) -> dict[str, np.ndarray]:
    """The neuron's vectors in the kernels' form."""
    vectors = {name: _array(layer.tensors[name]) for name in ("decay", "threshold", "reset", "start")}
    if layer.options["soft"]:
        vectors["reset"] = -vectors["threshold"]
    if layer.options["strict"]:
        vectors["threshold"] = np.nextafter(vectors["threshold"], np.float32(np.inf))
    return vectors


def _array(vector: Tensor) -> np.ndarray:
    return np.ascontiguousarray(vector.detach().float().numpy())


def entries(op: OpSpec, engine: str) -> dict[str, np.ndarray]:
    """The kept weights in the order of the engine's kernel."""
    assert op.sparse is not None
    if engine == "real":
        starts, weights = P.real_weights(op.sparse)
        return {"starts": starts, "weights": weights}
    # The upper plane of an average is silent almost everywhere (it takes four spikes at once), so it goes by events.
    first = 1 if engine == "lookup" else 0
    starts, pairs = P.lookup_pairs(op.sparse, op.planes, first)
    arrays = {"starts": starts, "pairs": pairs}
    if op.planes[first:]:
        op.first_event = first * op.sparse.n_columns
        lists = [P.event_lists(op.sparse, factor) for factor, _ in op.planes[first:]]
        ends = np.cumsum([0, *(len(events) for _, events in lists)])
        begins = [starts[:-1] + end for (starts, _), end in zip(lists, ends, strict=False)]
        arrays["event_starts"] = np.concatenate([*begins, ends[-1:]]).astype(np.int32)
        arrays["events"] = np.concatenate([events for _, events in lists])
    return arrays


def _scaled(op: OpSpec, scale: Tensor, bias: Tensor) -> dict[str, np.ndarray]:
    """The operation's arrays with an affine folded into them."""
    arrays = dict(op.arrays)
    k, b = scale.numpy(), bias.numpy()
    arrays["bias"] = np.ascontiguousarray((arrays["bias"].astype(np.float64) * k + b).astype(np.float32))
    if "scale" in arrays or op.sparse is None:
        arrays["scale"] = np.ascontiguousarray((arrays["scale"].astype(np.float64) * k).astype(np.float32))
    else:
        rows = np.repeat(np.arange(len(op.sparse.starts) - 1), np.diff(op.sparse.starts))
        op.sparse.values = (op.sparse.values.astype(np.float64) * k[rows]).astype(np.float32)
    return arrays
