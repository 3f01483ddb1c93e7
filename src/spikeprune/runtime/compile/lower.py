"""Turns the user's model into a `LoweredNetwork`: traces one forward, folds BatchNorm, names what it cannot compile."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from spikeprune.core.errors import InvalidValue
from spikeprune.model.adapter import Adapter, adapter_for
from spikeprune.model.examples import evaluating, undisturbed
from spikeprune.model.trace import Graph, Node, Tracer
from spikeprune.model.wrappers import eager
from spikeprune.runtime.compile.network import LoweredLayer, LoweredNetwork, Option, interpret
from spikeprune.runtime.compile.ops import Operation, operation, operations
from spikeprune.runtime.compile.probe import probe


def _keep(spikes: dict[str, Tensor], name: str, _: nn.Module, __: Any, result: Tensor) -> None:
    spikes[name] = result


@dataclass
class _Recorded:
    graph: Graph
    spikes: dict[str, Tensor]  # of every neuron, by name
    output: Tensor


def _trace(model: nn.Module, example: Tensor, adapter: Adapter) -> _Recorded:
    graphs: list[Graph] = []
    spikes: dict[str, Tensor] = {}
    tracer = Tracer(model, adapter, graphs.append, constants=True)
    hooks = [
        neuron.register_forward_hook(partial(_keep, spikes, name)) for name, neuron in adapter.neurons(model).items()
    ]
    try:
        with torch.no_grad(), evaluating(model), undisturbed(model, adapter):
            output = model(example)
    finally:
        tracer.remove()
        for hook in hooks:
            hook.remove()
    if not graphs:
        raise InvalidValue("the model's output does not depend on its input, so there is nothing to compile")
    return _Recorded(graphs[0], spikes, output)


def _check(network: LoweredNetwork, recorded: _Recorded, example: Tensor) -> None:
    """Compares the lowered network with the model on the example: a module may compute something else than its class.

    The first neuron layer whose spikes differ decides; in the layers behind it differences only spread. The network
    also measures how many spikes the example causes, for the cost model.
    Raises: InvalidValue if more spikes differ than rounding explains, or if the output differs.
    """
    with torch.no_grad():
        values = interpret(network, example.detach().float().cpu(), network.still)
    network.measure(values, network.still)
    for layer in network.layers:
        if not layer.op.fires:
            continue
        expected = recorded.spikes[layer.name].cpu()
        differ = int((values[layer.output] != expected).sum())
        if differ > max(2, 1e-4 * expected.numel()):
            raise InvalidValue(
                f"cannot compile the layers up to {layer.name!r}: {differ} of {expected.numel()} spikes differ from "
                "the model's; some module there computes something else than the class that it derives from"
            )
        if differ:
            return
    output, expected = values[network.output], recorded.output.float().cpu()
    if output.shape != expected.shape or not torch.allclose(output, expected, rtol=1e-3, atol=1e-4):
        raise InvalidValue(
            "cannot compile what follows the last neuron: the output differs from the model's; "
            "let the model return what its readout reads"
        )


class Lowering:
    """Turns a traced graph into layers; every operation takes the nodes that it knows (`Operation.lower`).

    Attributes:
        value: node -> number of its value. form: node -> how it lies: "image" [N, ...], "sequence" [T, N, ...] or
            "merged" [T * N, ...].
        shape: value -> shape of one image and step. static: value -> whether it is the same at every step.
    """

    def __init__(self, graph: Graph, adapter: Adapter) -> None:
        self.graph = graph
        self.adapter = adapter
        self.layers: list[LoweredLayer] = []
        self.value: dict[int, int] = {}
        self.form: dict[int, str] = {}
        self.shape: dict[int, tuple[int, ...]] = {}
        self.static: dict[int, bool] = {}
        self.T = self.N = 1

    def run(self, example: Tensor, image_dims: int) -> LoweredNetwork:
        """The network of the whole graph."""
        first, *rest = self.graph.nodes
        sequence = example.dim() > image_dims
        self.N = example.shape[1] if sequence else example.shape[0]
        self.T = example.shape[0] if sequence else self._repeats()
        self.value[first.index] = 0
        self.form[first.index] = "sequence" if sequence else "image"
        self.shape[0] = tuple(example.shape[2:] if sequence else example.shape[1:])
        self.static[0] = not sequence
        for node in rest:
            self._node(node)
        if len(self.graph.outputs) != 1:
            raise InvalidValue(
                f"a compiled model returns one tensor, this one returns {len(self.graph.outputs)}; wrap it in a module"
            )
        output = self.graph.outputs[0]
        if self.form[output] == "merged":
            raise InvalidValue("the model returns time and batch in one axis; let it return [T, N, ...] or [N, ...]")
        value = self.value[output]
        if self.form[output] == "sequence" and self.static[value]:
            repeat = LoweredLayer(operation("repeat"), "output", (value,), 0, self.shape[value])
            value = self.add(repeat, static=False)
        return LoweredNetwork(self.layers, value, self.shape[0], self.T, still=not sequence)

    def _repeats(self) -> int:
        """How often a still image is shown: the length of the first time axis that the trace meets."""
        for node in self.graph.nodes:
            if node.kind == "neuron" and node.module is not None and self.adapter.multi_step(node.module):
                return node.shape[0]
        raise InvalidValue(
            "the model has no multi-step neuron, so its number of steps cannot be told; compile takes models that "
            "process [T, N, ...] (SpikingJelly: functional.set_step_mode(model, 'm'))"
        )

    def add(self, layer: LoweredLayer, static: bool) -> int:
        """Appends a layer and numbers its value."""
        layer.output = len(self.shape)
        self.layers.append(layer)
        self.shape[layer.output] = layer.shape
        self.static[layer.output] = static
        return layer.output

    def put(self, node: Node, op: Operation, options: dict[str, Option] | None = None, **tensors: Tensor) -> None:
        """Makes the node a layer of the operation."""
        form = self.form[node.inputs[0]]
        per_image = tuple(node.shape[2:] if form == "sequence" else node.shape[1:])
        inputs = tuple(self.value[i] for i in node.inputs)
        static = op.keeps_static and all(self.static[value] for value in inputs)
        layer = LoweredLayer(
            op, node.name, inputs, 0, per_image, options or {}, {k: v.detach().cpu() for k, v in tensors.items()}
        )
        self.value[node.index] = self.add(layer, static)
        self.form[node.index] = form

    def same(self, node: Node, form: str | None = None) -> None:
        """Makes the node another name of its input, perhaps in another form."""
        self.value[node.index] = self.value[node.inputs[0]]
        self.form[node.index] = form or self.form[node.inputs[0]]

    def refuse(self, node: Node, why: str) -> InvalidValue:
        """The error for a node that cannot be compiled."""
        of = "" if node.weight is None else f" of {node.weight}"
        what = type(node.module).__name__ if node.module is not None else f"function{of}"
        return InvalidValue(
            f"cannot compile {node.name!r} ({what}): {why}; see the guide for the layers that sp.compile knows"
        )

    def _node(self, node: Node) -> None:
        if node.kind == "identity":
            return self.same(node)
        if not any(op.lower(node, self) for op in operations() if node.kind in op.reads):
            raise self.refuse(node, "this operation is not supported")
        if node.index not in self.value:
            raise self.refuse(node, "its operation made no layer of it; let its lower call put or same")


def _fold(network: LoweredNetwork) -> None:
    """Folds what only scales or selects channels into the layer with a weight before it, where nothing else reads it.

    A selection behind a scaling moves before it, so that both can be folded.
    """
    readers = network.readers()
    made = {layer.output: layer for layer in network.layers}
    kept: list[LoweredLayer] = []
    for layer in network.layers:
        before = made.get(layer.inputs[0])
        alone = before is not None and len(readers[before.output]) == 1 and before.output != network.output
        index, scaling = layer.op.selection(layer), layer.op.channel_scaling(layer)
        if before is None or not alone:
            kept.append(layer)
        elif index is not None and before.op.selectable(before):
            before.tensors = {name: t[index] for name, t in before.tensors.items()}
            if before.op.channel_scaling(before) is not None:  # scale, select -> select, scale
                layer.inputs, before.inputs = before.inputs, (before.output,)
                layer.output, before.output = before.output, layer.output
                kept.insert(kept.index(before), layer)
                made[layer.output] = layer
            else:
                before.output = layer.output
            before.shape = layer.shape
            made[before.output] = before
            readers = network.readers()
        elif scaling is not None and before.op.weighted:
            scale, weight = scaling[0], before.tensors["weight"]
            before.tensors["weight"] = weight.double() * scale.view(-1, *[1] * (weight.dim() - 1))
            before.tensors["bias"] = before.tensors["bias"].double() * scale + scaling[1]
            before.output = layer.output
            made[layer.output] = before
        else:
            kept.append(layer)
    network.layers = kept
    for layer in kept:
        layer.tensors = {
            name: t.contiguous() if t.dtype == torch.int64 else t.float().contiguous()
            for name, t in layer.tensors.items()
        }


def lower(model: nn.Module, example: Tensor) -> LoweredNetwork:
    """The model's forward in eval mode as a `LoweredNetwork`, on the CPU; the model is left as it was.

    A multi-step model is read module by module. Any other one is recorded function by function (`steps/`).

    Args:
        example: an input as the model takes it, an image batch [N, ...] or a sequence.

    Raises: InvalidValue, naming the module, for what cannot be compiled.
    """
    model = eager(model)
    try:
        return lower_modules(model, example)
    except InvalidValue as refused:
        from spikeprune.runtime.steps.lower import lower_any

        try:
            network = lower_any(model, example)
        except InvalidValue as error:
            # Where both refuse, the one speaks that names a part of the model.
            told = str(error).startswith("cannot compile") and "(function)" in str(refused)
            raise (
                error if told or "unbind" in str(refused) or "no spiking neuron" in str(refused) else refused
            ) from None
        _fold(network)
        return network


def lower_modules(model: nn.Module, example: Tensor) -> LoweredNetwork:
    """The network of a multi-step model whose modules an adapter and the operations know.

    Raises: InvalidValue, naming the module, for what they do not know.
    """
    adapter = adapter_for(model)
    recorded = _trace(model, example, adapter)
    lowering = Lowering(recorded.graph, adapter)
    image_dims = _image_dims(recorded.graph, example)
    network = lowering.run(example, image_dims)
    _fold(network)
    _check(network, recorded, example)
    batch_axis = 1 if example.dim() > image_dims else 0
    with evaluating(model):
        # Generated input of two samples shows all that more would, at a fraction of the time.
        probe(model, network, example.narrow(batch_axis, 0, min(2, example.shape[batch_axis])), adapter)
    return network


def _image_dims(graph: Graph, example: Tensor) -> int:
    """Axes of one image batch: an example with one more is a sequence. Told by whether the model adds a time axis."""
    for node in graph.nodes:
        if node.kind in ("conv", "linear", "neuron") and node.module is not None:
            break
        if node.kind in ("reshape", "stack") and node.name in ("unsqueeze", "repeat", "expand", "stack"):
            return example.dim()
    else:
        return example.dim()
    if node.kind == "conv" and len(node.shape) == example.dim() and example.dim() == 4:
        return 4  # a stem that runs on images
    return example.dim() - 1
