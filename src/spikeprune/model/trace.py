"""One forward of the user's model as a graph of layers and tensor functions.

Everything that must know how layers are connected reads this graph: which neuron a weight feeds (`pair`), which
channels belong together (shrink), what to compile (runtime). Nothing of the model is changed; leaf modules are seen
through hooks, what stands between them through a `TorchFunctionMode`.
"""

from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]
from torch.nn.modules.conv import _ConvNd  # pyright: ignore[reportPrivateUsage]
from torch.nn.modules.instancenorm import _InstanceNorm  # pyright: ignore[reportPrivateUsage]
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils.weak import WeakIdKeyDictionary

from spikeprune.core.errors import InvalidValue
from spikeprune.model.adapter import Adapter

_POOLS = (
    nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
)  # fmt: skip
_NORMS = (_BatchNorm, _InstanceNorm, nn.LayerNorm, nn.GroupNorm)
_IDENTITIES = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.Identity)
_RESHAPES = (nn.Flatten, nn.Unflatten)
_KINDS: tuple[tuple[str, tuple[type, ...]], ...] = (
    ("conv", (_ConvNd,)), ("linear", (nn.Linear,)), ("norm", _NORMS), ("pool", _POOLS),
    ("identity", _IDENTITIES), ("reshape", _RESHAPES),
)  # fmt: skip
_FUNCTIONS = {
    "add": "add", "add_": "add", "__add__": "add", "__radd__": "add", "__iadd__": "add",
    "flatten": "reshape", "view": "reshape", "reshape": "reshape", "unflatten": "reshape", "squeeze": "reshape",
    "unsqueeze": "reshape", "permute": "reshape", "transpose": "reshape", "contiguous": "reshape", "expand": "reshape",
    "repeat": "reshape", "view_as": "reshape", "movedim": "reshape", "clone": "identity", "detach": "identity",
    "to": "identity", "float": "identity", "dropout": "identity", "__getitem__": "select", "unbind": "select",
    "chunk": "select", "split": "select", "select": "select", "stack": "stack", "cat": "cat", "concat": "cat",
    "mean": "reduce", "sum": "reduce", "avg_pool2d": "pool", "max_pool2d": "pool", "adaptive_avg_pool2d": "pool",
    "conv1d": "conv", "conv2d": "conv", "conv3d": "conv", "linear": "linear", "batch_norm": "norm",
}  # fmt: skip


@dataclass(frozen=True)
class Node:
    """One call of a leaf module or of a tensor function.

    Attributes:
        index: place in execution order; `inputs` are indices of the nodes whose results went in.
        kind: input, conv, linear, norm, pool, neuron, add, cat, stack, select, reduce, reshape, identity or other.
        name: the module's name as in `named_modules`, or the function's.
        module: the leaf module, None for a function.
        weight: name of the prunable parameter that the call multiplied with, if any.
        shape: shape of the (first) result.
        arguments: positional and keyword arguments of a function, with tensors replaced by None.
    """

    index: int
    kind: str
    name: str
    module: nn.Module | None
    inputs: tuple[int, ...]
    shape: tuple[int, ...]
    weight: str | None = None
    arguments: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})


@dataclass
class Graph:
    """The nodes of one forward in execution order, and the indices of what the model returned.

    `constants`: node index -> tensors that its function read beside the traced ones, such as a mask or a gate's index;
    only where the Tracer was told to keep them.
    """

    nodes: list[Node] = field(default_factory=list[Node])
    outputs: tuple[int, ...] = ()
    constants: dict[int, list[Tensor]] = field(default_factory=dict[int, list[Tensor]])

    def users(self) -> dict[int, list[int]]:
        """Index -> indices of the nodes that read it, in execution order."""
        table: dict[int, list[int]] = {node.index: [] for node in self.nodes}
        for node in self.nodes:
            for source in dict.fromkeys(node.inputs):
                table[source].append(node.index)
        return table


class _Recorder(TorchFunctionMode):
    """Sees every tensor function outside of leaf modules; leaf modules report themselves through hooks."""

    def __init__(self, graph: Graph, weights: dict[int, str], constants: bool = False) -> None:
        super().__init__()
        self.graph = graph
        self.constants = constants
        self.weights = weights  # id of a parameter -> its name
        self.depth = 0  # how many leaf modules we are inside of
        self.source: WeakIdKeyDictionary = WeakIdKeyDictionary()  # tensor -> index of the node it came from

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        inputs = () if self.depth else self.sources((args, kwargs))
        # Looked up before the call: an in-place function's result is one of its arguments.
        constants = [t for t in _tensors((args, kwargs)) if t not in self.source] if self.constants and inputs else []
        result = func(*args, **kwargs)
        if inputs and any(True for _ in _tensors(result)):
            if self.constants:
                self.graph.constants[len(self.graph.nodes)] = constants
            short = (resolve_name(func) or getattr(func, "__name__", "function")).rsplit(".", 1)[-1]
            kind = _FUNCTIONS.get(short, "other")
            used = (self.weights[id(t)] for t in _tensors((args, kwargs)) if id(t) in self.weights)
            weight = next(used, None) if kind in ("conv", "linear") else None
            plain = (tuple(_without_tensors(args)), {k: _without_tensors(v) for k, v in kwargs.items()})
            self.add(kind, short, None, inputs, result, weight, plain)
        return result

    def sources(self, values: Any) -> tuple[int, ...]:
        return tuple(self.source[t] for t in _tensors(values) if t in self.source)

    def add(
        self,
        kind: str,
        name: str,
        module: nn.Module | None,
        inputs: tuple[int, ...],
        result: Any,
        weight: str | None = None,
        arguments: tuple[tuple[Any, ...], dict[str, Any]] = ((), {}),
    ) -> None:
        tensors = list(_tensors(result))
        shape = tuple(tensors[0].shape) if tensors else ()
        node = Node(len(self.graph.nodes), kind, name, module, inputs, shape, weight, arguments)
        self.graph.nodes.append(node)
        for tensor in tensors:
            self.source[tensor] = node.index


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (tuple, list)):
        for value in values:  # pyright: ignore[reportUnknownVariableType]
            yield from _tensors(value)
    elif isinstance(values, dict):
        for value in values.values():  # pyright: ignore[reportUnknownVariableType]
            yield from _tensors(value)


def _without_tensors(value: Any) -> Any:
    if isinstance(value, Tensor):
        return None
    if isinstance(value, (tuple, list)):
        return tuple(_without_tensors(v) for v in value)  # pyright: ignore[reportUnknownVariableType]
    return value


@runtime_checkable
class ChannelGate(Protocol):
    """A module that passes on only some channels of [..., C, H, W]: where `keep` [C] is True; `index` in order."""

    channels: int
    keep: Tensor
    index: Tensor

    def select(self, keep: Tensor) -> None:
        """Lets only the channels pass where `keep` is True."""
        ...


def leaf_kind(module: nn.Module, adapter: Adapter | None) -> str | None:
    """The kind of a module that the trace does not look into, None for a container."""
    if adapter is not None and adapter.is_neuron(module):
        return "neuron"
    if isinstance(module, ChannelGate):
        return "select"
    return next((kind for kind, classes in _KINDS if isinstance(module, classes)), None)


class Tracer:
    """Records the next forward of `model`, then takes its hooks away again.

    Use `trace` for a forward of our own; the Pruner uses this to read the user's first forward. With `constants` the
    graph keeps those too.
    """

    def __init__(
        self, model: nn.Module, adapter: Adapter | None, done: Callable[[Graph], None], constants: bool = False
    ) -> None:
        self.graph = Graph()
        self.recorder = _Recorder(self.graph, {id(p): name for name, p in model.named_parameters()}, constants)
        self.done = done
        self.handles: list[Any] = []
        self.handles.append(model.register_forward_pre_hook(self._enter, with_kwargs=True))
        # always_call: if the user's forward raises, the mode must still be left.
        self.handles.append(model.register_forward_hook(self._leave, always_call=True))
        for name, module in model.named_modules():
            kind = leaf_kind(module, adapter)
            if kind is not None and module is not model:
                self._watch(name, module, kind)

    def _watch(self, name: str, module: nn.Module, kind: str) -> None:
        pending: list[tuple[int, ...]] = []
        weight = self.recorder.weights.get(id(getattr(module, "weight", None)))

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            pending.append(self.recorder.sources((args, kwargs)))
            self.recorder.depth += 1

        def after(_: nn.Module, args: tuple[Any, ...], result: Any) -> None:
            self.recorder.depth -= 1
            inputs = pending.pop()
            if inputs and self.recorder.depth == 0:
                self.recorder.add(kind, name, module, inputs, result, weight if kind in ("conv", "linear") else None)

        self.handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        self.handles.append(module.register_forward_hook(after, always_call=True))

    def _enter(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.recorder.depth = 0
        self.recorder.add("input", "input", None, (), (args, kwargs))
        self.recorder.__enter__()

    def _leave(self, _: nn.Module, args: tuple[Any, ...], result: Any) -> None:
        self.recorder.__exit__(None, None, None)
        self.graph.outputs = self.recorder.sources(result)
        self.remove()
        if self.graph.outputs:  # nothing came out when the user's forward raised: say nothing, record nothing
            self.done(self.graph)

    def remove(self) -> None:
        """Takes every hook off the model."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()


def trace(
    model: nn.Module, *example: Any, adapter: Adapter | None = None, keywords: Mapping[str, Any] | None = None
) -> Graph:
    """The graph of one forward, `model(*example, **keywords)`.

    Runs without gradient in the model's own train or eval mode; BatchNorm's running statistics and the membrane
    state are put back afterwards.

    Raises: InvalidValue if what the model returns does not depend on the example.
    """
    graphs: list[Graph] = []
    tracer = Tracer(model, adapter, graphs.append)
    try:
        with torch.no_grad(), undisturbed(model, adapter):
            model(*example, **(keywords or {}))
    finally:
        tracer.remove()
    if not graphs:
        raise InvalidValue("the model's output does not depend on its input, so there is nothing to trace")
    return graphs[0]


@contextmanager
def undisturbed(model: nn.Module, adapter: Adapter | None) -> Generator[None]:
    """Whatever is run inside, buffers (BatchNorm's averages), membrane state and random numbers stay as they were."""
    # Clones take the buffers' places and the originals come back: writing to the originals, even the same values, would
    # upset an autograd graph that has saved them, when this runs between a forward and its backward.
    buffers = [(m, name, b) for m in model.modules() for name, b in m._buffers.items() if b is not None]
    for module, name, buffer in buffers:
        module._buffers[name] = buffer.clone()
    states = adapter.states(model) if adapter is not None else None
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    if adapter is not None:
        adapter.reset(model)
    try:
        with torch.random.fork_rng(devices=list(devices)):
            yield
    finally:
        if adapter is not None:
            adapter.restore(model, states)
        for module, name, buffer in buffers:
            module._buffers[name] = buffer
        # Weights that autocast has cast without gradient would be taken again by a forward that needs one.
        torch.clear_autocast_cache()


@dataclass(frozen=True)
class Pairing:
    """Which neuron a prunable weight feeds; `neuron` is None for a layer that feeds none, such as the classifier.

    `joined`: on the way other channels are put beside the layer's own, so that its channels are not the neuron's.
    """

    weight: str
    layer: str
    neuron: str | None
    joined: bool = False


_TRANSPARENT = {"norm", "pool", "add", "reshape", "identity", "select", "stack", "cat", "reduce", "other"}


def pair(graph: Graph, weights: Collection[str] | None = None) -> dict[str, Pairing]:
    """Weight name -> its neuron: the first in execution order that the layer's output reaches.

    The output is followed through normalisation, pooling, adds, containers and shortcuts, never through another
    weight layer (which would mix the channels) or another neuron.

    Args:
        weights: the weights to look at; all, if not given.
    Raises: InvalidValue if one weight is used several times and feeds different neurons.
    """
    users = graph.users()
    pairs: dict[str, Pairing] = {}
    for node in graph.nodes:
        if node.weight is None or (weights is not None and node.weight not in weights):
            continue
        neuron, joined = _first_neuron(graph, users, node.index)
        known = pairs.get(node.weight)
        if known is None or known.neuron is None:
            pairs[node.weight] = Pairing(node.weight, node.name, neuron, joined)
        elif neuron is not None and neuron != known.neuron:
            raise InvalidValue(
                f"{node.weight!r} is used more than once and feeds both {known.neuron!r} and {neuron!r}; "
                f"its neuron cannot be told: pass exclude=[{node.weight!r}]"
            )
    return pairs


def _first_neuron(graph: Graph, users: dict[int, list[int]], start: int) -> tuple[str | None, bool]:
    """The name of the neuron reached first, and whether only paths through a cat of channels lead there."""
    best: dict[int, bool] = {start: False}  # node -> joined on every path so far
    front = [start]
    while front:
        index = front.pop()
        if index != start and graph.nodes[index].kind not in _TRANSPARENT:
            continue
        for user in users[index]:
            joined = best[index] or _joins_channels(graph.nodes[user])
            if best.get(user, True) and not (user in best and joined):
                best[user] = joined
                front.append(user)
    neurons = [index for index in best if graph.nodes[index].kind == "neuron"]
    return (graph.nodes[min(neurons)].name, best[min(neurons)]) if neurons else (None, False)


def _joins_channels(node: Node) -> bool:
    """Whether the node is a cat of several tensors along anything but the first axis (time, or the batch)."""
    if node.kind != "cat" or len(node.inputs) < 2:
        return False
    positional, named = node.arguments
    return (positional[1] if len(positional) > 1 else named.get("dim", named.get("axis", 0))) != 0
