"""Builds the schedule: neighbouring native layers become programs, with buffers and what each kernel does besides."""

import ctypes

import numpy as np
from torch import Tensor

from spikeprune.runtime.compile.network import LoweredLayer, LoweredNetwork, spatial
from spikeprune.runtime.compile.ops.base import NativeNeuron, array
from spikeprune.runtime.compile.packing import packings
from spikeprune.runtime.compile.program import BufferSpec, OpSpec, Program
from spikeprune.runtime.compile.schedule import DenseStage, EngineSchedule, NativeStage
from spikeprune.runtime.structs import EXTERNAL, REAL, STATIC, WORDS


class Builder:
    """Turns a network and the engine of each layer into an `EngineSchedule`: native and PyTorch calls in order."""

    def __init__(
        self,
        network: LoweredNetwork,
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
        self.packed = packings(network)
        self.shapes = network.shapes()
        self.watched = watched or set()  # values that the caller wants as tensors too
        self.schedule = EngineSchedule()
        self.done: set[int] = set()  # places
        self.maker = {layer.output: place for place, layer in enumerate(network.layers)}
        self.reshaped = network.reshaped()
        self._fresh()

    def _fresh(self) -> None:
        self.ops: list[OpSpec] = []
        self.buffers: list[BufferSpec] = []
        self.words: dict[int, int] = {}  # value -> buffer of the program under construction
        self.reals: dict[int, int] = {}
        self.outside: dict[int, int] = {}
        self.tensors: set[int] = getattr(self, "tensors", {0})  # values that exist as tensors

    def build(self) -> EngineSchedule:
        for place, layer in enumerate(self.network.layers):
            if place in self.done:
                continue
            if not self._native(place, layer):
                self._flush({self.reshaped.get(v, v) for v in layer.inputs})
                for value in layer.inputs:  # a flatten that was left to a native layer, which then could not run
                    if value in self.reshaped and value not in self.tensors:
                        self.schedule.stages.append(DenseStage(self.network.layers[self.maker[value]], False))
                        self.tensors.add(value)
                self.schedule.stages.append(DenseStage(layer, all(v in self.static for v in layer.inputs)))
                self.schedule.notes[place] = "dense" if layer.op.weighted else "PyTorch"
                self.tensors.add(layer.output)
            self.done.add(place)
        self._flush({self.network.output})
        return self.schedule

    # Which layers go together ------------------------------------------------------------------------------------

    def _native(self, place: int, layer: LoweredLayer) -> bool:
        if self.library is None or layer.output in self.static:
            return False
        sources = [self.reshaped.get(value, value) for value in layer.inputs]
        if any(len(self.shapes[value]) not in (1, 3) for value in (*layer.inputs, *sources, layer.output)):
            return False  # the kernels know features and maps
        return layer.op.place(place, layer, self)

    def add(self, place: int, op: OpSpec, note: str) -> None:
        """Appends an operation to the program; `note` names its engine in the plan."""
        self.schedule.notes[place] = note
        self.ops.append(op)

    def pointwise(
        self, place: int, layer: LoweredLayer, arrays: dict[str, np.ndarray], residual: int | None = None
    ) -> bool:
        """Adds a layer that computes each position by itself: scale * x + bias, plus a value, or then a neuron."""
        if any(len(self.shapes[v]) != len(layer.shape) for v in layer.inputs):
            return False
        op = OpSpec("pointwise", self.input(layer.inputs[0]), spatial(layer.shape), (layer.name,), arrays=arrays)
        neuron = layer.op.native_neuron(layer)
        if neuron is not None:
            op.neuron, op.soft = neuron.vectors, neuron.soft
            op.spikes = self.make_words(layer.output)
        else:
            if residual is not None:
                op.residual = self.input(residual)
            self.finish(layer, op)
        self.add(place, op, "native")
        return True

    def _only_reader(self, value: int) -> tuple[int, LoweredLayer] | None:
        readers = self.readers[value]
        if len(readers) != 1 or value == self.network.output or value in self.watched:
            return None
        return readers[0], self.network.layers[readers[0]]

    def finish(self, layer: LoweredLayer, op: OpSpec) -> None:
        """Lets `op`, which computes `layer`'s output, also do what directly follows: add, scale, fire."""
        value = self._add_on_the_way(op, layer.output)
        follow = [(p, self.network.layers[p]) for p in self.readers[value]]
        neuron = next(((p, a) for p, a in follow if a.op.native_neuron(a) is not None), None)
        scaled = next(((p, a) for p, a in follow if a.op.channel_scaling(a) is not None), None)
        scaling = None
        if neuron is None and scaled is not None and scaled[0] not in self.done:
            after = self._only_reader(scaled[1].output)
            if after is not None and after[1].op.native_neuron(after[1]) is not None:
                scaling = scaled[1].op.channel_scaling(scaled[1])
                self._join(op, *scaled)
                neuron = after
        alone = self._only_reader(value) is not None
        if neuron is None or not alone:
            op.real = self.make_real(value)
        native = None if neuron is None else neuron[1].op.native_neuron(neuron[1])
        if neuron is not None and native is not None and neuron[0] not in self.done:
            self._fire_on_the_way(op, native, scaling, alone)
            self._join(op, *neuron)
            op.spikes = self.make_words(neuron[1].output)

    def _add_on_the_way(self, op: OpSpec, value: int) -> int:
        """The value that `op` computes once it also adds what its only reader adds."""
        follower = self._only_reader(value)
        if follower is None or op.residual >= 0:
            return value
        other = follower[1].op.residual(follower[1], value)
        if other is None or not self.available(other):
            return value
        op.residual = self.input(other)
        self._join(op, *follower)
        return follower[1].output

    @staticmethod
    def _fire_on_the_way(op: OpSpec, neuron: NativeNeuron, scaling: tuple[Tensor, Tensor] | None, alone: bool) -> None:
        """Lets `op` fire a neuron. A scaling of its input goes into the weights if nothing else reads the sum."""
        scale, bias = neuron.gain, neuron.shift
        if scaling is not None:
            scale, bias = neuron.gain * scaling[0].double(), neuron.gain * scaling[1].double() + neuron.shift
        if alone and op.residual < 0:
            op.arrays = _scaled(op, scale, bias)
        elif not (bool((scale == 1).all()) and bool((bias == 0).all())):
            op.arrays |= {"post_scale": array(scale), "post_bias": array(bias)}
        op.neuron, op.soft = neuron.vectors, neuron.soft

    def _join(self, op: OpSpec, place: int, layer: LoweredLayer) -> None:
        op.layers = (*op.layers, layer.name)
        self.done.add(place)
        self.schedule.notes[place] = f"fused into {op.layers[0]}"

    def wanted_packed(self, value: int) -> bool:
        """Whether every reader of a pooled value takes it packed."""
        if value == self.network.output or value in self.watched:
            return False
        readers = [
            p for v in (value, *(f for f, base in self.reshaped.items() if base == value)) for p in self.readers[v]
        ]
        return all(self.network.layers[p].op.takes_packed(p, self) for p in readers)

    # Buffers -----------------------------------------------------------------------------------------------------

    def available(self, value: int) -> bool:
        return value in self.words or value in self.reals or value in self.tensors

    def _new(self, spec: BufferSpec) -> int:
        self.buffers.append(spec)
        return len(self.buffers) - 1

    def make_words(self, value: int) -> int:
        c, h, w = spatial(self.shapes[value])
        planes = len(self.packed[value].planes)
        self.words[value] = self._new(BufferSpec(value, WORDS, (c * planes, h, w)))
        return self.words[value]

    def make_real(self, value: int) -> int:
        self.reals[value] = self._new(BufferSpec(value, REAL, spatial(self.shapes[value])))
        return self.reals[value]

    def input(self, value: int, words: bool | None = None, pad: tuple[int, int] = (0, 0)) -> int:
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
            kind = STATIC if value in self.static else EXTERNAL
            self.outside[value] = self._new(BufferSpec(value, kind, spatial(self.shapes[value])))
        return self.outside[value]

    def _convert(self, value: int, words: bool) -> int:
        """Copies a value between its packed and its real form. Spikes are packed by a neuron that fires at x >= 1/2."""
        shape = spatial(self.shapes[value])
        op = OpSpec("pointwise", self.input(value), shape, ())
        ones = np.ones(shape[0], np.float32)
        op.arrays = {"scale": ones, "bias": 0 * ones}
        if words:
            op.neuron = {"decay": 0 * ones, "threshold": ones / 2, "reset": 0 * ones, "start": 0 * ones}
            op.spikes = self.make_words(value)
        else:
            op.real = self.make_real(value)
        self.ops.append(op)
        return op.spikes if words else op.real

    def _flush(self, wanted: set[int]) -> None:
        """Ends the program under construction; everything that is read later leaves it as a tensor."""
        if self.ops:
            made = [v for v in {**self.words, **self.reals} if v not in self.tensors]
            leaving = [v for v in made if v in wanted or v in self.watched or self._read_later(v)]
            for value in leaving:
                shape = spatial(self.shapes[value])
                op = OpSpec("pointwise", self.input(value), shape, ())
                op.arrays = {"scale": np.ones(shape[0], np.float32), "bias": np.zeros(shape[0], np.float32)}
                dense = [self.network.layers[p] for p in self.readers[value] if p not in self.done]
                last = any(layer.op.prefers_channels_last(layer) for layer in dense)
                op.real = self._new(BufferSpec(value, EXTERNAL, shape, output=True, channels_last=last))
                self.ops.append(op)
            self._direct()
            program = Program(self.library, self.ops, self.buffers)  # pyright: ignore[reportArgumentType]
            shapes = {v: self.shapes[v] for v in leaving}
            self.schedule.stages.append(NativeStage(program, shapes))
            self.tensors |= set(leaving)
        self._fresh()

    def _read_later(self, value: int) -> bool:
        users = [p for p in self.readers.get(value, ()) if p not in self.done]
        users += [
            p for flat, base in self.reshaped.items() if base == value for p in self.readers[flat] if p not in self.done
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
                self.buffers[copy.input].kind = EXTERNAL  # unused from now on
                self.buffers[copy.input] = BufferSpec(-1, WORDS, (0, 0, 0))
                self.ops.remove(copy)


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
