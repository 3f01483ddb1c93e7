"""The interface of an operation of a compiled network. All parts but name, shape and result have a default."""

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor

from spikeprune.core.errors import InvalidValue, unknown
from spikeprune.model.trace import Node
from spikeprune.runtime.compile.network import LoweredLayer, Option
from spikeprune.runtime.compile.packing import Packing

if TYPE_CHECKING:
    from spikeprune.runtime.compile.builder import Builder
    from spikeprune.runtime.compile.cost import Choice, Circumstances
    from spikeprune.runtime.compile.lower import Lowering
    from spikeprune.runtime.nir_graph import NirGraph

Shape = tuple[int, ...]
Runner = Callable[[list[Tensor], int], Tensor]


@dataclass
class NativeNeuron:
    """A neuron's vectors [C] in the kernels' form, and the scale and shift of its input (float64)."""

    vectors: dict[str, np.ndarray]
    soft: bool
    gain: Tensor
    shift: Tensor


class Operation(abc.ABC):
    """One kind of layer. Its instance holds no state: settings and weights stand in the `LoweredLayer`.

    Attributes:
        name: in compiled files, plans and messages.
        reads: kinds of the trace's nodes that this operation may stand for; asked in the order of `priority`.
        keeps_static: its result is the same at every step if its inputs are.
        ends_time: its result has no time axis, whatever its inputs have.
        weighted: it multiplies with a weight, and the cost model chooses its engine.
        fires: its result is the spikes of a neuron, shown by `CompiledSNN.trace`.
        sparse_result: mostly zeros come out where spikes go in, so the example shows how busy it is.
        reshapes: its result is its input in another shape.
    """

    name: ClassVar[str]
    reads: ClassVar[tuple[str, ...]] = ()
    priority: ClassVar[int] = 0
    keeps_static: ClassVar[bool] = True
    ends_time: ClassVar[bool] = False
    weighted: ClassVar[bool] = False
    fires: ClassVar[bool] = False
    sparse_result: ClassVar[bool] = False
    reshapes: ClassVar[bool] = False

    # From the model ----------------------------------------------------------------------------------------------

    def lower(self, node: Node, to: "Lowering") -> bool:
        """Adds the layer that a traced node stands for (`to.put`, `to.same`); False if the node is another operation's.

        Raises: InvalidValue (made by `to.refuse`) for a node that is this operation but with settings it cannot do.
        """
        return False

    @abc.abstractmethod
    def check(self, layer: LoweredLayer, inputs: list[Shape]) -> Shape:
        """The shape of the result, computed from the inputs' shapes; settings and tensors are checked on the way.

        Raises: InvalidValue for a layer that cannot be run, as a file from elsewhere may hold.
        """

    # Folding -----------------------------------------------------------------------------------------------------

    def channel_scaling(self, layer: LoweredLayer) -> tuple[Tensor, Tensor] | None:
        """(scale, bias) if the layer does nothing but scale and shift each channel."""
        return None

    def selection(self, layer: LoweredLayer) -> Tensor | None:
        """The channels' index if the layer does nothing but select channels."""
        return None

    def selectable(self, layer: LoweredLayer) -> bool:
        """Whether a selection of its output's channels is the same selection in each of its tensors."""
        return False

    # In PyTorch --------------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def compute(self, layer: LoweredLayer, values: list[Tensor], static: bool, T: int) -> Tensor:
        """The result in PyTorch; it defines what a native kernel must give. `static`: all values lack the time axis."""

    def runner(self, layer: LoweredLayer, static: bool) -> Runner:
        """A function that gives the result of `compute`, prepared for many fast calls."""
        return lambda values, T: self.compute(layer, values, static, T)

    def prefers_channels_last(self, layer: LoweredLayer) -> bool:
        """Whether `runner` is faster where its input lies in memory with channels last."""
        return False

    # In C++ ------------------------------------------------------------------------------------------------------

    def packing(self, layer: LoweredLayer, source: Packing | None) -> Packing | None:
        """How the result is packed in bits, from how the first input is; None if it cannot be."""
        return None

    def price(self, layer: LoweredLayer, here: "Circumstances") -> "Choice | None":
        """The engine to run the layer on and the times that decided; None if there is no choice."""
        return None

    def place(self, place: int, layer: LoweredLayer, builder: "Builder") -> bool:
        """Adds the layer to the native program under construction; False if PyTorch has to compute it."""
        return False

    def residual(self, layer: LoweredLayer, value: int) -> int | None:
        """The other value if the layer does nothing but add it to `value`: a kernel can do that on the way."""
        return None

    def native_neuron(self, layer: LoweredLayer) -> NativeNeuron | None:
        """The neuron if the layer is one: a kernel can fire it on the way."""
        return None

    def takes_packed(self, place: int, builder: "Builder") -> bool:
        """Whether the layer at `place` reads its input packed in bits."""
        return False

    def reads_maps(self, place: int, builder: "Builder") -> bool:
        """Whether the layer at `place` reads the map itself where its input is a flattened one."""
        return False

    # To other tools ----------------------------------------------------------------------------------------------

    def unrolled(self, layer: LoweredLayer, values: list[Tensor], static: bool, T: int) -> Tensor:
        """`compute` in a form that an exporter of graphs can follow, for any batch size (ONNX)."""
        return self.compute(layer, values, static, T)

    def export_nir(self, layer: LoweredLayer, graph: "NirGraph") -> None:
        """Adds the layer to a NIR graph.

        Raises: InvalidValue where NIR cannot say it.
        """
        raise graph.refuse(layer, f"NIR has no {self.name}")


O = TypeVar("O", bound=Operation)
_OPERATIONS: dict[str, Operation] = {}


def register(cls: type[O]) -> type[O]:
    """Class decorator: makes an operation known by its name."""
    if cls.name in _OPERATIONS:
        raise InvalidValue(f"two operations are called {cls.name!r}; give the new one a name of its own")
    _OPERATIONS[cls.name] = cls()
    return cls


def operations() -> list[Operation]:
    """All operations, those of low priority first and by name."""
    return sorted(_OPERATIONS.values(), key=lambda op: (op.priority, op.name))


def operation(name: str) -> Operation:
    """The operation of that name.

    Raises: UnknownName with the nearest name.
    """
    if name not in _OPERATIONS:
        raise unknown("operation of a compiled network", name, _OPERATIONS)
    return _OPERATIONS[name]


def over_images(function: Callable[[Tensor], Tensor], x: Tensor, static: bool) -> Tensor:
    """A function of images [M, ...] on [N, ...] or [T, N, ...]."""
    return function(x) if static else function(x.flatten(0, 1)).unflatten(0, x.shape[:2])


def array(vector: Tensor) -> np.ndarray:
    """A vector as the kernels read it."""
    return np.ascontiguousarray(vector.detach().float().numpy())


# Checks of layers ----------------------------------------------------------------------------------------------------

LARGEST = 1 << 20  # of a kernel's, stride's or padding's size: far above every network, far below any overflow


def wrong(layer: LoweredLayer, why: str) -> InvalidValue:
    """The error for a layer that cannot be run."""
    return InvalidValue(f"layer {str(layer.name)[:60]!r} ({layer.kind}) of the compiled network cannot be run: {why}")


def expect(layer: LoweredLayer, inputs: list[Shape], options: set[str], tensors: set[str], n: int = 1) -> None:
    """Checks the number of inputs and the names of settings and tensors."""
    if len(inputs) != n:
        raise wrong(layer, f"it reads {len(inputs)} values, {n} needed")
    for what, found, needed in (("settings", layer.options, options), ("tensors", layer.tensors, tensors)):
        if set(found) != needed:
            raise wrong(
                layer, f"its {what} are {', '.join(sorted(found))[:80] or 'none'}, not {', '.join(sorted(needed))}"
            )


def check_tensor(layer: LoweredLayer, name: str, *shape: int | None, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor of the layer, checked; None in `shape` stands for any size from 1."""
    tensor = layer.tensors[name]
    fits = tensor.dim() == len(shape) and all(
        size >= 1 if wanted is None else size == wanted for size, wanted in zip(tensor.shape, shape, strict=True)
    )
    if not fits or tensor.dtype != dtype:
        raise wrong(layer, f"its {name} is {tensor.dtype} {list(tensor.shape)}")
    return tensor


def check_pair(value: Option, layer: LoweredLayer, name: str, least: int) -> tuple[int, int]:
    """A setting of two whole numbers.

    Raises: InvalidValue, which names the layer, for another kind of value, or a number below `least` or too large.
    """
    fits = isinstance(value, tuple) and len(value) == 2
    if not fits or not all(type(v) is int and least <= v <= LARGEST for v in value):  # pyright: ignore
        raise wrong(layer, f"its {name} is {str(value)[:40]}")
    return value  # pyright: ignore[reportReturnType]


def check_flag(value: Option, layer: LoweredLayer, name: str) -> bool:
    """A setting that is true or false. Raises: InvalidValue, which names the layer, for another kind of value."""
    if type(value) is not bool:
        raise wrong(layer, f"its {name} is {str(value)[:40]}, neither true nor false")
    return value


def check_map(layer: LoweredLayer, shape: Shape) -> tuple[int, int, int]:
    """(C, H, W) of an input that must be a map."""
    if len(shape) != 3:
        raise wrong(layer, f"it needs a map [C, H, W], its input is {list(shape)}")
    return shape  # pyright: ignore[reportReturnType]
