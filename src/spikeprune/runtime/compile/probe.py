"""Is the lowered network the model? Compared where the example shows nothing: on generated inputs and currents.

An example that fires no spike proves nothing about the layers behind a silent neuron. So every neuron is handed a
generated current instead of its own: it fires, and the layers behind it are seen at work. Compared are the input
current of each neuron (with it the membrane potential before firing, which is the same function of the current on both
sides), the spikes that it fires on the generated current, and what follows the last neuron.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from spikeprune.core.errors import InvalidValue
from spikeprune.model.adapter import Adapter
from spikeprune.model.examples import undisturbed
from spikeprune.runtime.compile.network import LoweredLayer, LoweredNetwork, channelwise

SCALES = (0.25, 1.0, 8.0)  # mixed at random over steps, samples, channels and columns
TOLERANCE = 1e-3  # of the largest input current of a layer


def probe(model: nn.Module, network: LoweredNetwork, example: Tensor, adapter: Adapter) -> None:
    """Compares model and network; the model must be in eval mode and is left as it was.

    Raises: InvalidValue, naming the modules, for what differs.
    """
    generator = torch.Generator().manual_seed(0)
    x = _mixed(tuple(example.shape), generator) * max(1.0, float(example.abs().max()))
    neurons = [layer for layer in network.layers if layer.op.fires]
    seen = _Seen(neurons, generator)
    hooks: list[Any] = []
    for name, neuron in adapter.neurons(model).items():
        hooks.append(neuron.register_forward_pre_hook(partial(seen.hand_over, name)))
        hooks.append(neuron.register_forward_hook(partial(seen.keep, name)))
    try:
        with torch.no_grad(), undisturbed(model, adapter):
            output = model(x.to(example))
    finally:
        for hook in hooks:
            hook.remove()
    with torch.no_grad():
        _compare(network, x, seen, output.float().cpu())


class _Seen:
    """For each call of a neuron: its input, the input that replaced it, and its spikes, in the order of calls."""

    def __init__(self, layers: list[LoweredLayer], generator: torch.Generator) -> None:
        self.generator = generator
        self.waiting: dict[str, list[LoweredLayer]] = {}
        for layer in layers:
            self.waiting.setdefault(layer.name, []).append(layer)
        self.inputs: dict[int, Tensor] = {}  # by the layer's output
        self.currents: dict[int, Tensor] = {}
        self.spikes: dict[int, Tensor] = {}
        self.running: dict[str, LoweredLayer] = {}

    def hand_over(self, name: str, _: nn.Module, args: tuple[Any, ...]) -> Any:
        """Replaces the input current."""
        x = args[0]
        if not self.waiting.get(name):
            return None
        layer = self.running[name] = self.waiting[name].pop(0)
        self.inputs[layer.output] = x.float().cpu()
        threshold, gain = layer.tensors["threshold"], layer.tensors["gain"]
        size = (threshold.abs() / gain.abs().clamp(min=1e-6)).clamp(1e-3, 1e3)
        current = _mixed(tuple(x.shape), self.generator).mul_(3).sub_(0.5).mul_(channelwise(size, x.dim() - 2))
        self.currents[layer.output] = current
        return (current.to(x), *args[1:])

    def keep(self, name: str, _: nn.Module, __: Any, result: Tensor) -> None:
        """Keeps the spikes of the call."""
        if name in self.running:
            self.spikes[self.running.pop(name).output] = result.float().cpu()


def _mixed(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Random numbers from 0 to one of the scales, which is drawn anew along all axes but those between C and the last.

    A scale for each position would take longer to draw than the neuron takes to run.
    """
    drawn = tuple(1 if 2 < axis < len(shape) - 1 else size for axis, size in enumerate(shape))
    scale = torch.tensor(SCALES)[torch.randint(len(SCALES), drawn, generator=generator)]
    return torch.rand(shape, generator=generator) * scale


def _compare(network: LoweredNetwork, x: Tensor, seen: _Seen, output: Tensor) -> None:
    T = network.T if network.still else len(x)
    static = network.static(network.still)
    values = {0: x}
    for layer in network.layers:
        inputs = [values[value] for value in layer.inputs]
        still = all(value in static for value in layer.inputs)
        compute: Callable[[list[Tensor], bool], Tensor] = partial(_run, layer, T)
        if not layer.op.fires:
            values[layer.output] = compute(inputs, still)
            continue
        if layer.output not in seen.spikes:
            raise InvalidValue(
                f"cannot compile {layer.name!r}: the forward did not call it for another input of the example's shape; "
                "let it do the same for every input"
            )
        expected = seen.inputs[layer.output]
        if any(a not in (1, b) for a, b in zip(inputs[0].shape[::-1], expected.shape[::-1], strict=False)):
            # A model that takes [N, T, ...], read with as many samples as steps.
            raise InvalidValue(
                f"cannot compile the layers up to {layer.name!r}: the model's input currents are "
                f"{list(expected.shape)}, not {list(inputs[0].shape)}; pass an example of another number of samples "
                "than steps"
            )
        distance = float((inputs[0].expand_as(expected) - expected).abs().max())
        largest = float(expected.abs().max())
        if not distance <= TOLERANCE * largest + 1e-6:
            raise InvalidValue(
                f"cannot compile the layers up to {layer.name!r}: its input currents differ from the model's by "
                f"{distance:.2g} of {largest:.2g} on a generated input; one of {_before(network, layer)} computes "
                "something else than the class that it derives from"
            )
        fired = seen.spikes[layer.output]
        differ = int((compute([seen.currents[layer.output]], False) != fired).sum())
        if differ > max(2, 1e-4 * fired.numel()):
            raise InvalidValue(
                f"cannot compile the neuron {layer.name!r}: {differ} of {fired.numel()} spikes differ from those of "
                "its numbers on a generated current; let its adapter's describe() return None, or correct it"
            )
        values[layer.output] = fired
    found = values[network.output]
    distance, largest = float((found - output).abs().max()), float(output.abs().max())
    if found.shape != output.shape or not distance <= TOLERANCE * largest + 1e-6:
        last = next((layer for layer in network.layers if layer.output == network.output), network.layers[-1])
        raise InvalidValue(
            f"cannot compile what follows the last neuron: outputs differ from the model's by {distance:.2g} of "
            f"{largest:.2g} on a generated input; one of {_before(network, last)} is not what its class says"
        )


def _run(layer: LoweredLayer, T: int, inputs: list[Tensor], still: bool) -> Tensor:
    return layer.op.compute(layer, inputs, still, T)


def _before(network: LoweredNetwork, layer: LoweredLayer) -> str:
    """The names of the layers between a layer and the neurons before it."""
    made = {other.output: other for other in network.layers}
    names: list[str] = [] if layer.op.fires else [layer.name]
    front = list(layer.inputs)
    while front:
        other = made.get(front.pop())
        if other is not None and not other.op.fires and other.name not in names:
            names.append(other.name)
            front += other.inputs
    return ", ".join(repr(name) for name in reversed(names[:4])) or "the model's functions"
