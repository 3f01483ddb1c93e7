"""One forward of the user's model as a graph of layers and tensor functions.

Everything that must know how layers are connected reads this graph: which neuron a weight feeds (`pair`), which
channels belong together (shrink), what to compile (runtime). Nothing of the model is changed; leaf modules are seen
through hooks, what stands between them through a `TorchFunctionMode`.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from spikeprune.core.errors import InvalidValue
from spikeprune.model.adapter import Adapter
from spikeprune.model.arguments import NONE, Arguments, on_call
from spikeprune.model.discover import SpikeNeuron, functions_watched
from spikeprune.model.examples import undisturbed
from spikeprune.model.hooks import OwnHook
from spikeprune.model.operations import leaf_kind
from spikeprune.model.watch import Listener, Watch
from spikeprune.model.weights import Use, stored_weight


@dataclass(frozen=True)
class Node:
    """One call of a leaf module or of a tensor function.

    Attributes:
        index: place in execution order; `inputs` are indices of the nodes whose results went in.
        kind: input, conv, linear, norm, pool, neuron, add, cat, stack, select, reduce, reshape, identity, write or
            other. A neuron without a module was found by its spike function.
        name: the module's name as in `named_modules`, or the function's.
        module: the leaf module, None for a function.
        weight: name of the prunable parameter that the call multiplied with, if any.
        shape: shape of the (first) result.
        arguments: positional and keyword arguments of a function, with tensors replaced by None.
        use: how a function multiplied with the weight; None for modules.
        traced: which positional arguments of a function are tensors that come from the model's input.
    """

    index: int
    kind: str
    name: str
    module: nn.Module | None
    inputs: tuple[int, ...]
    shape: tuple[int, ...]
    weight: str | None = None
    arguments: Arguments = NONE
    use: Use | None = None
    traced: tuple[int, ...] = ()


@dataclass
class Graph:
    """The nodes of one forward in execution order, and the indices of the nodes that made the model's outputs.

    `constants`: node index -> further tensors that its function read, which do not come from the model's input, such as
    a mask or a gate's index; empty unless the Tracer was told to keep them.
    `spikes`: name -> neuron that is no module but was found by its spike function.
    `inner`: weight -> the neuron module that multiplies with it inside, and how.
    `renamed`: name of a found neuron -> name of the neuron that it is the same as, for later forwards.
    `unread`: weight -> function that combines it with values of the forward in a way that is no known product.
    `mapped`: name of a function that multiplies inside of `torch.vmap`, where tensors cannot be followed; else None.
    """

    nodes: list[Node] = field(default_factory=list[Node])
    outputs: tuple[int, ...] = ()
    constants: dict[int, list[Tensor]] = field(default_factory=dict[int, list[Tensor]])
    spikes: dict[str, SpikeNeuron] = field(default_factory=dict[str, SpikeNeuron])
    inner: dict[str, tuple[str, Use]] = field(default_factory=dict[str, tuple[str, Use]])
    renamed: dict[str, str] = field(default_factory=dict[str, str])
    unread: dict[str, str] = field(default_factory=dict[str, str])
    mapped: str | None = None

    def append(
        self,
        kind: str,
        name: str,
        module: nn.Module | None,
        inputs: tuple[int, ...],
        results: list[Tensor],
        weight: str | None = None,
        arguments: Arguments = NONE,
        use: Use | None = None,
        traced: tuple[int, ...] = (),
    ) -> int:
        """Adds a node; returns its index."""
        shape = tuple(results[0].shape) if results and not results[0].is_nested else ()  # a nested one has none
        self.nodes.append(Node(len(self.nodes), kind, name, module, inputs, shape, weight, arguments, use, traced))
        return len(self.nodes) - 1

    def cut(self, length: int) -> None:
        """Forgets the nodes from index `length` on."""
        del self.nodes[length:]
        for index in [i for i in self.constants if i >= length]:
            del self.constants[index]

    def relabel_last(self, kind: str, name: str) -> None:
        """Gives the last node another kind and name."""
        self.nodes[-1] = replace(self.nodes[-1], kind=kind, name=name)

    def users(self) -> dict[int, list[int]]:
        """Index -> indices of the nodes that read it, in execution order."""
        table: dict[int, list[int]] = {node.index: [] for node in self.nodes}
        for node in self.nodes:
            for source in dict.fromkeys(node.inputs):
                table[source].append(node.index)
        return table


class Tracer:
    """Records the next forward of `model`, then takes its hooks away again.

    Use `trace` for a forward of our own; the Pruner uses this to read the user's first forward. With `constants` the
    graph keeps those too. A `listener` is told about spike functions and weights in use while the forward runs;
    `known` is the graph of an earlier forward, so that neurons keep their names. Without `once` it records every
    forward until it is removed.
    """

    def __init__(
        self,
        model: nn.Module,
        adapter: Adapter | None,
        done: Callable[[Graph], None],
        constants: bool = False,
        listener: Listener | None = None,
        known: Graph | None = None,
        once: bool = True,
    ) -> None:
        self.model, self.constants, self.listener, self.known, self.once = model, constants, listener, known, once
        self.graph, self.watch = self._fresh()
        self.done = done
        self.handles: list[Any] = []
        self._functions = ExitStack()
        self._running = False
        self.handles.append(on_call(model, self.enter))
        # always_call: if the user's forward raises, the mode must still be left.
        self.handles.append(model.register_forward_hook(OwnHook(self._leave), always_call=True))
        for name, module in model.named_modules():
            kind = leaf_kind(module, adapter)
            if kind is not None and module is not model:
                self._watch(name, module, kind)

    def _fresh(self) -> tuple[Graph, Watch]:
        graph = Graph() if self.known is None else Graph(spikes=self.known.spikes, renamed=self.known.renamed)
        watch = Watch(graph, self.model, self.constants, self.listener)
        watch.first = self.known is None
        return graph, watch

    def _watch(self, name: str, module: nn.Module, kind: str) -> None:
        pending: list[tuple[tuple[int, ...], Any, str | None]] = []
        stored = stored_weight(module) if kind in ("conv", "linear") else None
        weight = self.watch.weights.get(id(stored))

        def before(_: nn.Module, given: Arguments) -> None:
            watch = self.watch
            pending.append((watch.sources(given), given, watch.inside))
            watch.depth += 1
            if kind == "neuron" and watch.depth == 1:
                watch.inside = name

        def after(_: nn.Module, args: tuple[Any, ...], result: Any) -> None:
            watch = self.watch
            watch.depth -= 1
            inputs, values, watch.inside = pending.pop()
            if watch.depth == 0:
                if kind == "neuron":
                    watch.keep_inner(name, result)
                watch.leaf(kind, name, weight, values, result)
                if inputs:
                    watch.add(kind, name, module, inputs, result, weight)

        self.handles.append(on_call(module, before))
        self.handles.append(module.register_forward_hook(OwnHook(after), always_call=True))

    def enter(self, _: nn.Module, given: Arguments) -> None:
        """A forward begins. Called by a hook, or by who installs the tracer inside of the model's own first hook."""
        if self._running:
            return
        self._running = True
        self.graph, self.watch = self._fresh()
        if self.listener is not None:
            self.listener.began()
        self.watch.add("input", "input", None, (), given)
        self._functions.enter_context(functions_watched(self.watch.function))
        self._functions.enter_context(self.watch)

    def _leave(self, _: nn.Module, args: tuple[Any, ...], result: Any) -> None:
        if not self._running:
            return
        self._running = False
        self._functions.close()
        self.graph.outputs = self.watch.sources(result)
        if self.once:
            self.remove()
        if (
            self.graph.outputs or not self.once
        ):  # nothing came out when the user's forward raised: say nothing, record nothing
            if self.known is None:
                unite_first_steps(self.graph)
            self.done(self.graph)

    def remove(self) -> None:
        """Takes every hook off the model."""
        self._functions.close()
        for handle in self.handles:
            handle.remove()
        self.handles.clear()


def batch_of(graph: Graph) -> int | None:
    """N, read from what the model returned: [N, classes]; None if it returned something else."""
    shapes = {graph.nodes[i].shape for i in graph.outputs}
    shape = shapes.pop() if len(shapes) == 1 else ()
    return shape[0] if len(shape) == 2 else None


def unite_first_steps(graph: Graph) -> None:
    """Joins two found neurons that are one: a recurrent layer's first step, without recurrent weights, and the rest.

    The first step of a loop may leave the recurrent weights out, since there are no spikes yet; its neuron then is fed
    by fewer weights than that of the later steps. Told by the calls: one, and all others of the loop.
    """
    steps = max((neuron.calls for neuron in graph.spikes.values()), default=0)
    weights = {title: set(title.partition(" of ")[2].split(", ")) for title in graph.spikes}
    for first in [t for t, neuron in graph.spikes.items() if neuron.calls == 1]:
        for later, neuron in list(graph.spikes.items()):
            same_function = first.partition(" of ")[0] == later.partition(" of ")[0]
            if same_function and weights[first] < weights[later] and neuron.calls + 1 >= steps and neuron.calls > 1:
                graph.renamed[first] = later
                neuron.calls += graph.spikes.pop(first).calls
                graph.nodes = [replace(n, name=later) if n.name == first else n for n in graph.nodes]
                break


def trace(
    model: nn.Module,
    *example: Any,
    adapter: Adapter | None = None,
    keywords: Mapping[str, Any] | None = None,
    constants: bool = False,
) -> Graph:
    """The graph of one forward, `model(*example, **keywords)`.

    Runs without gradient in the model's own train or eval mode; BatchNorm's running statistics and the membrane
    state are put back afterwards. `constants`: whether the graph keeps what functions read beside the traced tensors.

    Raises: InvalidValue if what the model returns does not depend on the example.
    """
    graphs: list[Graph] = []
    tracer = Tracer(model, adapter, graphs.append, constants)
    try:
        with torch.no_grad(), undisturbed(model, adapter):
            model(*example, **(keywords or {}))
    finally:
        tracer.remove()
    if not graphs:
        raise InvalidValue("the model's output does not depend on its input, so there is nothing to trace")
    return graphs[0]
