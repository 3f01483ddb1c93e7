"""From the user's model to a `Network`: trace one forward, fold BatchNorm, name what cannot be compiled."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from spikeprune.core.errors import InvalidValue
from spikeprune.model.adapter import Adapter, adapter_for
from spikeprune.model.examples import undisturbed
from spikeprune.model.operations import ChannelGate
from spikeprune.model.trace import Graph, Node, Tracer
from spikeprune.runtime.compile.layers import Layer, Network, busyness, interpret


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
    training = {module: module.training for module in model.modules()}
    hooks = [
        neuron.register_forward_hook(partial(_keep, spikes, name)) for name, neuron in adapter.neurons(model).items()
    ]
    try:
        model.eval()
        with torch.no_grad(), undisturbed(model, adapter):
            output = model(example)
    finally:
        tracer.remove()
        for hook in hooks:
            hook.remove()
        for module, mode in training.items():
            module.training = mode
    if not graphs:
        raise InvalidValue("the model's output does not depend on its input, so there is nothing to compile")
    return _Recorded(graphs[0], spikes, output)


def _check(network: Network, recorded: _Recorded, example: Tensor) -> None:
    """Compares the lowered network with the model on the example: a subclass may compute what its base does not.

    Also notes how busy the example's spikes are.

    The first neuron that differs decides; behind it, differences only spread.
    """
    with torch.no_grad():
        values = interpret(network, example.detach().float().cpu(), network.still)
    static = network.static(network.still)
    for layer in network.layers:
        if layer.kind in ("neuron", "pool") and values[layer.output].dim() > 2 and layer.output not in static:
            network.busy[layer.output] = busyness(values[layer.output])
    for layer in network.layers:
        if layer.kind != "neuron":
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


def _refuse(node: Node, why: str) -> InvalidValue:
    what = type(node.module).__name__ if node.module is not None else "function"
    return InvalidValue(
        f"cannot compile {node.name!r} ({what}): {why}; see the guide for the layers that sp.compile knows"
    )


# How a traced tensor lies: "image" [N, ...], "sequence" [T, N, ...], "merged" [T * N, ...].
class _Lowering:
    def __init__(self, graph: Graph, adapter: Adapter) -> None:
        self.graph = graph
        self.adapter = adapter
        self.layers: list[Layer] = []
        self.value: dict[int, int] = {}  # node -> value
        self.form: dict[int, str] = {}
        self.shape: dict[int, tuple[int, ...]] = {}  # value -> shape of one image and step
        self.static: dict[int, bool] = {}  # value -> same at every step
        self.T = 1

    def run(self, example: Tensor, image_dims: int) -> Network:
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
            value = self._add(Layer("repeat", "output", (value,), 0, self.shape[value]), static=False)
        return Network(self.layers, value, self.shape[0], self.T, still=not sequence)

    def _repeats(self) -> int:
        """How often a still image is shown: the length of the first time axis that the trace meets."""
        for node in self.graph.nodes:
            if node.kind == "neuron" and node.module is not None and self.adapter.multi_step(node.module):
                return node.shape[0]
        raise InvalidValue(
            "the model has no multi-step neuron, so its number of steps cannot be told; compile takes models that "
            "process [T, N, ...] (SpikingJelly: functional.set_step_mode(model, 'm'))"
        )

    def _add(self, layer: Layer, static: bool) -> int:
        layer.output = len(self.shape)
        self.layers.append(layer)
        self.shape[layer.output] = layer.shape
        self.static[layer.output] = static
        return layer.output

    def _put(self, node: Node, kind: str, options: dict[str, Any] | None = None, **tensors: Tensor) -> None:
        source = node.inputs[0]
        form = self.form[source]
        per_image = tuple(node.shape[2:] if form == "sequence" else node.shape[1:])
        inputs = tuple(self.value[i] for i in node.inputs)
        static = kind != "neuron" and all(self.static[value] for value in inputs)
        layer = Layer(
            kind, node.name, inputs, 0, per_image, options or {}, {k: v.detach().cpu() for k, v in tensors.items()}
        )
        self.value[node.index] = self._add(layer, static)
        self.form[node.index] = form

    def _same(self, node: Node, form: str | None = None) -> None:
        self.value[node.index] = self.value[node.inputs[0]]
        self.form[node.index] = form or self.form[node.inputs[0]]

    def _node(self, node: Node) -> None:
        if not node.inputs:
            raise _refuse(node, "its input could not be traced")
        if any(i not in self.value for i in node.inputs):
            raise _refuse(node, "it reads something that could not be compiled")
        handler = getattr(self, f"lower_{node.kind}", None)
        if handler is None:
            raise _refuse(node, "this operation is not supported")
        handler(node)

    def lower_identity(self, node: Node) -> None:
        self._same(node)

    def lower_conv(self, node: Node) -> None:
        m: Any = node.module
        if not isinstance(m, nn.Conv2d):
            raise _refuse(node, "only nn.Conv2d is supported")
        if m.padding_mode != "zeros" and any(_pair(m.padding)):
            raise _refuse(node, f"padding_mode={m.padding_mode!r} is not supported, only 'zeros'")
        padding = m.padding
        if isinstance(padding, str):
            total = [d * (k - 1) for d, k in zip(m.dilation, m.kernel_size, strict=True)]
            if padding == "same" and any(t % 2 for t in total):
                raise _refuse(node, "padding='same' with an even kernel is not supported")
            padding = (0, 0) if padding == "valid" else tuple(t // 2 for t in total)
        options = {"stride": m.stride, "padding": tuple(padding), "dilation": m.dilation, "groups": m.groups}
        bias = torch.zeros(m.out_channels) if m.bias is None else m.bias
        self._put(node, "conv", options, weight=m.weight.float().clone(), bias=bias.float().clone())

    def lower_linear(self, node: Node) -> None:
        m: Any = node.module
        if not isinstance(m, nn.Linear):
            raise _refuse(node, "only nn.Linear is supported")
        if len(self.shape[self.value[node.inputs[0]]]) != 1:
            raise _refuse(node, "it must stand behind a flatten")
        bias = torch.zeros(m.out_features) if m.bias is None else m.bias
        self._put(node, "linear", {}, weight=m.weight.float().clone(), bias=bias.float().clone())

    def lower_norm(self, node: Node) -> None:
        m: Any = node.module
        if not isinstance(m, nn.modules.batchnorm._BatchNorm) or m.running_mean is None or m.running_var is None:
            raise _refuse(node, "only BatchNorm with running statistics can be folded")
        scale = (m.running_var.double() + m.eps).rsqrt()
        if m.weight is not None:
            scale = scale * m.weight.double()
        shift = -m.running_mean.double() * scale
        if m.bias is not None:
            shift = shift + m.bias.double()
        self._put(node, "affine", {}, scale=scale, bias=shift)  # float64 until it is folded

    def lower_neuron(self, node: Node) -> None:
        params = self.adapter.describe(node.module) if node.module is not None else None
        if params is None:
            raise _refuse(node, "only plain IF, LIF and PLIF neurons are supported")
        assert node.module is not None
        source = self.value[node.inputs[0]]
        if self.form[node.inputs[0]] != "sequence" or not self.adapter.multi_step(node.module):
            raise _refuse(node, "the neuron must be multi-step and see [T, N, ...]")
        channels = self.shape[source][0]

        def vector(what: str, number: float | Tensor) -> Tensor:
            value = torch.as_tensor(number, dtype=torch.float64).detach().cpu()
            if value.numel() not in (1, channels) or (value.dim() > 1 and value.numel() != max(value.shape)):
                raise _refuse(
                    node, f"its {what} has shape {list(value.shape)}; one value, or one per channel, is supported"
                )
            return value.reshape(-1).expand(channels).clone()

        decay, rest = vector("decay", params.decay), vector("v_rest", params.v_rest)
        soft = params.v_reset is None
        self._put(
            node, "neuron", {"soft": soft, "strict": params.strict},
            decay=decay, gain=vector("gain", params.gain), shift=(1 - decay) * rest, start=rest,
            threshold=vector("v_threshold", params.v_threshold),
            reset=vector("v_reset", 0.0 if params.v_reset is None else params.v_reset),
        )  # fmt: skip

    def lower_pool(self, node: Node) -> None:
        m: Any = node.module
        shape = self.shape[self.value[node.inputs[0]]]
        if isinstance(m, nn.MaxPool2d):
            if _pair(m.dilation) != (1, 1) or m.return_indices:
                raise _refuse(node, "max pooling with dilation or indices is not supported")
            options = {"mode": "max", "divisor": None, "count_pad": True}
        elif isinstance(m, nn.AvgPool2d):
            options = {"mode": "avg", "divisor": m.divisor_override, "count_pad": m.count_include_pad}
        elif isinstance(m, nn.AdaptiveAvgPool2d):
            size = tuple(node.shape[-2:])
            if any(i % o for i, o in zip(shape[1:], size, strict=True)):
                self._put(node, "pool", {"mode": "adaptive", "size": size})
                return
            kernel = tuple(i // o for i, o in zip(shape[1:], size, strict=True))
            options = {"mode": "avg", "kernel": kernel, "stride": kernel, "padding": (0, 0), "ceil": False,
                       "divisor": None, "count_pad": True}  # fmt: skip
            self._put(node, "pool", options)
            return
        else:
            raise _refuse(node, "only 2-d max, average and adaptive average pooling are supported")
        kernel = _pair(m.kernel_size)
        options |= {"kernel": kernel, "stride": _pair(m.stride), "padding": _pair(m.padding), "ceil": m.ceil_mode}
        self._put(node, "pool", options)

    def lower_add(self, node: Node) -> None:
        forms = {self.form[i] for i in node.inputs}
        shapes = {self.shape[self.value[i]] for i in node.inputs}
        if len(node.inputs) != 2 or len(forms) != 1 or len(shapes) != 1 or self.graph.constants.get(node.index):
            raise _refuse(node, "only the sum of two traced tensors of one shape is supported")
        self._put(node, "add")

    def lower_reshape(self, node: Node) -> None:
        source = node.inputs[0]
        form, value = self.form[source], self.value[source]
        per_image = self.shape[value]
        T, N = self.T, self.N
        if form == "image" and node.shape == (1, N, *per_image):
            return self._same(node, "sequence")  # a sequence of one step, to be repeated
        if form == "sequence" and self.static[value] and node.shape in ((T, N, *per_image), (1, N, *per_image)):
            return self._same(node)
        if form == "image" and self.static[value] and node.shape == (T, N, *per_image):
            return self._same(node, "sequence")
        if form == "sequence" and node.shape == (T, N, *per_image):
            return self._same(node)
        if form == "sequence" and not self.static[value] and node.shape == (T * N, *per_image):
            return self._same(node, "merged")
        if form == "merged" and node.shape == (T, N, *per_image):
            return self._same(node, "sequence")
        lead = 2 if form == "sequence" else 1
        features = 1
        for size in per_image:
            features *= size
        if node.shape[lead:] == (features,) and node.shape[:lead] == self.graph.nodes[source].shape[:lead]:
            if len(per_image) == 1:
                return self._same(node)
            return self._put(node, "flatten")
        if node.shape == self.graph.nodes[source].shape and node.name == "contiguous":
            return self._same(node)
        raise _refuse(node, f"reshaping {list(self.graph.nodes[source].shape)} to {list(node.shape)} is not supported")

    def lower_select(self, node: Node) -> None:
        index = getattr(node.module, "index", None)
        if not isinstance(node.module, ChannelGate) or not isinstance(index, Tensor):
            raise _refuse(node, "only channel gates select")
        if len(index) == self.shape[self.value[node.inputs[0]]][0]:
            return self._same(node)
        self._put(node, "select", {}, index=index.long())

    def lower_stack(self, node: Node) -> None:
        source = node.inputs[0]
        if (
            set(node.inputs) != {source}
            or not self.static[self.value[source]]
            or node.arguments[0][1:] not in ((), (0,))
        ):
            raise _refuse(node, "only an image stacked T times is supported")
        self._same(node, "sequence")

    def lower_reduce(self, node: Node) -> None:
        source = node.inputs[0]
        positional, keywords = node.arguments
        dim = keywords.get("dim", positional[1] if len(positional) > 1 else None)
        if dim not in (0, (0,)) or self.form[source] != "sequence" or keywords.get("keepdim"):
            raise _refuse(node, "only the mean or sum over time, dim=0 of [T, N, ...], is supported")
        per_image = self.shape[self.value[source]]
        layer = Layer("reduce", node.name, (self.value[source],), 0, per_image, {"mode": node.name})
        self.value[node.index] = self._add(layer, static=True)
        self.form[node.index] = "image"

    def lower_other(self, node: Node) -> None:
        constants = self.graph.constants.get(node.index, [])
        source = node.inputs[0]
        per_image = self.shape[self.value[source]]
        if len(node.inputs) == 1 and node.name in ("mul", "mul_", "__mul__", "__rmul__"):
            factors = [c for c in constants if c.numel() in (1, per_image[0])]
            numbers = [a for a in node.arguments[0] if isinstance(a, (int, float))]
            if factors and (factors[0].numel() == 1 or _is_channel_vector(factors[0], len(per_image))):
                scale = factors[0].double().reshape(-1).expand(per_image[0]).clone()
                return self._put(node, "affine", {}, scale=scale, bias=torch.zeros_like(scale))
            if numbers and not constants:
                scale = torch.full((per_image[0],), float(numbers[0]), dtype=torch.float64)
                return self._put(node, "affine", {}, scale=scale, bias=torch.zeros_like(scale))
        if len(node.inputs) == 1 and node.name == "index_select" and len(constants) == 1:
            dim = next((a for a in node.arguments[0] if isinstance(a, int)), node.arguments[1].get("dim"))
            lead = 2 if self.form[source] == "sequence" else 1
            if dim in (lead, -len(per_image)):
                return self._put(node, "select", {}, index=constants[0].long())
        raise _refuse(node, "this operation is not supported")


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)  # pyright: ignore[reportReturnType]


def _is_channel_vector(tensor: Tensor, dims: int) -> bool:
    """Whether a tensor broadcasts along the channel axis only, against [..., C, H, W] or [..., features]."""
    shape = tuple(tensor.shape)
    return len(shape) >= dims and all(size == 1 for place, size in enumerate(shape) if place != len(shape) - dims)


def _fold(network: Network) -> None:
    """Folds what only scales or selects channels into the conv or linear layer before it, where nothing else reads it.

    A selection behind an affine layer moves before it, so that both can be folded.
    """
    readers = network.readers()
    made = {layer.output: layer for layer in network.layers}
    kept: list[Layer] = []
    for layer in network.layers:
        before = made.get(layer.inputs[0])
        alone = before is not None and len(readers[before.output]) == 1 and before.output != network.output
        if before is None or not alone or layer.kind not in ("affine", "select"):
            kept.append(layer)
        elif layer.kind == "select" and before.kind in ("conv", "linear", "affine"):
            if before.kind == "conv" and before.options["groups"] > 1:
                kept.append(layer)
                continue
            index = layer.tensors["index"]
            before.tensors = {name: t[index] for name, t in before.tensors.items()}
            if before.kind == "affine":  # affine, select -> select, affine
                layer.inputs, before.inputs = before.inputs, (before.output,)
                layer.output, before.output = before.output, layer.output
                kept.insert(kept.index(before), layer)
                made[layer.output] = layer
            else:
                before.output = layer.output
            before.shape = layer.shape
            made[before.output] = before
            readers = Network(network.layers, network.output, network.input_shape, 1, True).readers()
        elif before.kind in ("conv", "linear"):
            scale, weight = layer.tensors["scale"], before.tensors["weight"]
            before.tensors["weight"] = weight.double() * scale.view(-1, *[1] * (weight.dim() - 1))
            before.tensors["bias"] = before.tensors["bias"].double() * scale + layer.tensors["bias"]
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


def lower(model: nn.Module, example: Tensor) -> Network:
    """The model's forward in eval mode as a `Network`, on the CPU.

    Args:
        model: multi-step, of any framework that an adapter knows; left as it was.
        example: an input as the model takes it, an image batch [N, ...] or a sequence [T, N, ...].

    Raises: InvalidValue, naming the module, for what cannot be compiled.
    """
    adapter = adapter_for(model)
    recorded = _trace(model, example, adapter)
    lowering = _Lowering(recorded.graph, adapter)
    network = lowering.run(example, _image_dims(recorded.graph, example))
    _fold(network)
    _check(network, recorded, example)
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
