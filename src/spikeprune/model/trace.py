"""One forward of the user's model as a graph of layers and tensor functions.

Everything that must know how layers are connected reads this graph: which neuron a weight feeds (`pair`), which
channels belong together (shrink), what to compile (runtime). Nothing of the model is changed; leaf modules are seen
through hooks, what stands between them through a `TorchFunctionMode`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils.weak import WeakIdKeyDictionary

from spikeprune.core.errors import InvalidValue
from spikeprune.model.adapter import Adapter
from spikeprune.model.examples import undisturbed
from spikeprune.model.operations import FUNCTIONS, leaf_kind


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
            kind = FUNCTIONS.get(short, "other")
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
