"""Integrate-and-fire neuron with numbers, or one number per channel, that do not change.

v_pre = decay * v + (gain * x + shift),   shift = (1 - decay) * v_rest
spike = v_pre >= threshold                (> if strict)
v     = reset where spike, else v_pre     (v_pre - (threshold - reset) * spike if soft)
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from spikeprune.core.neuron import charge, fire_and_reset, reset_after
from spikeprune.model.trace import Node
from spikeprune.runtime.compile.network import LoweredLayer, channelwise
from spikeprune.runtime.compile.ops import base
from spikeprune.runtime.compile.ops.base import NativeNeuron, Operation, Shape, array, register
from spikeprune.runtime.compile.packing import SPIKES, Packing

if TYPE_CHECKING:
    from spikeprune.runtime.compile.builder import Builder
    from spikeprune.runtime.compile.lower import Lowering
    from spikeprune.runtime.nir_graph import NirGraph

_VECTORS = ("decay", "gain", "shift", "start", "threshold", "reset")


@register
class Fire(Operation):
    """A spiking neuron that its adapter describes (`Adapter.describe`)."""

    name = "neuron"
    reads = ("neuron",)
    keeps_static = False
    fires = True
    sparse_result = True

    def lower(self, node: Node, to: "Lowering") -> bool:
        params = to.adapter.describe(node.module) if node.module is not None else None
        if params is None:
            raise to.refuse(node, "only plain IF, LIF and PLIF neurons are supported")
        assert node.module is not None
        source = to.value[node.inputs[0]]
        if to.form[node.inputs[0]] != "sequence" or not to.adapter.multi_step(node.module):
            raise to.refuse(node, "the neuron must be multi-step and see [T, N, ...]")
        channels = to.shape[source][0]

        def vector(what: str, number: float | Tensor) -> Tensor:
            value = torch.as_tensor(number, dtype=torch.float64).detach().cpu()
            if value.numel() not in (1, channels) or (value.dim() > 1 and value.numel() != max(value.shape)):
                raise to.refuse(
                    node, f"its {what} has shape {list(value.shape)}; one value, or one per channel, is supported"
                )
            return value.reshape(-1).expand(channels).clone()

        decay, rest = vector("decay", params.decay), vector("v_rest", params.v_rest)
        soft = params.v_reset is None
        to.put(
            node, self, {"soft": soft, "strict": params.strict},
            decay=decay, gain=vector("gain", params.gain), shift=(1 - decay) * rest, start=rest,
            threshold=vector("v_threshold", params.v_threshold),
            reset=vector("v_reset", 0.0 if params.v_reset is None else params.v_reset),
        )  # fmt: skip
        return True

    def check(self, layer: LoweredLayer, inputs: list[Shape]) -> Shape:
        base.expect(layer, inputs, {"soft", "strict"}, set(_VECTORS))
        for name in ("soft", "strict"):
            base.check_flag(layer.options[name], layer, name)
        for name in _VECTORS:
            base.check_tensor(layer, name, inputs[0][0])
        return inputs[0]

    def compute(self, layer: LoweredLayer, values: list[Tensor], static: bool, T: int) -> Tensor:
        x = values[0].expand(T, *values[0].shape) if static else values[0]
        spikes = torch.empty_like(x, memory_format=torch.contiguous_format)
        for t, fired in enumerate(_steps(layer, list(x), x.dim() - 2)):
            spikes[t] = fired
        return spikes

    def unrolled(self, layer: LoweredLayer, values: list[Tensor], static: bool, T: int) -> Tensor:
        x = values[0]
        steps = [x if static else x[t] for t in range(T)]
        return torch.stack([fired.to(x.dtype) for fired in _steps(layer, steps, x.dim() - (1 if static else 2))])

    def packing(self, layer: LoweredLayer, source: Packing | None) -> Packing:
        return SPIKES

    def native_neuron(self, layer: LoweredLayer) -> NativeNeuron:
        vectors = {name: array(layer.tensors[name]) for name in ("decay", "threshold", "reset", "start")}
        if layer.options["soft"]:
            vectors["reset"] = vectors["reset"] - vectors["threshold"]
        if layer.options["strict"]:
            vectors["threshold"] = np.nextafter(vectors["threshold"], np.float32(np.inf))
        p = layer.tensors
        return NativeNeuron(vectors, bool(layer.options["soft"]), p["gain"].double(), p["shift"].double())

    def place(self, place: int, layer: LoweredLayer, builder: "Builder") -> bool:
        arrays = {"scale": array(layer.tensors["gain"]), "bias": array(layer.tensors["shift"])}
        return builder.pointwise(place, layer, arrays)

    def export_nir(self, layer: LoweredLayer, graph: "NirGraph") -> None:
        import nir

        p = layer.tensors
        leak = (1 - p["decay"].double()).clamp(min=1e-30)
        rest = torch.where(leak > 1e-9, p["shift"].double() / leak, p["shift"].double())
        if torch.allclose(rest, p["start"].double(), rtol=1e-5, atol=1e-7):
            rest = p["start"]
        if bool(((p["decay"] == 1) & (p["shift"] != 0)).any()):
            raise graph.refuse(layer, "it has a current of its own and no leak; NIR needs a leak for that")
        if layer.options["soft"]:
            return self._export_soft(layer, graph, rest)
        # NIR does not say where a potential begins. Measured from its start it begins at 0, as most readers have it.
        levels = rest, p["threshold"], p["reset"]
        rest, threshold, reset = (level - p["start"] for level in levels) if bool(p["start"].any()) else levels
        decay, gain, rest, threshold, reset = (
            graph.each(v, layer.shape) for v in (p["decay"], p["gain"], rest, threshold, reset)
        )
        if (decay == 1).all():
            graph.node(layer, nir.IF(r=gain / graph.dt, v_threshold=threshold, v_reset=reset))
        elif (decay == 1).any():
            raise graph.refuse(layer, "some of its channels leak and some do not; NIR needs a node for each kind")
        else:
            leak = 1 - decay
            graph.node(layer, nir.LIF(graph.dt / leak, gain / leak, rest, threshold, reset))
        graph.binary.add(layer.output)

    def _export_soft(self, layer: LoweredLayer, graph: "NirGraph", rest: Tensor) -> None:
        """NIR's neurons reset to a value. So the membrane, the threshold and the reset become nodes of their own.

            v_t = decay v_{t-1} + gain (x_t - c s_{t-1}) + ...,   s_t = v_t > threshold,   c = decay a / gain

        where a = threshold - reset is taken away. An edge that closes a loop arrives one step later.
        """
        import nir

        p = {name: value.double() for name, value in layer.tensors.items()}
        if bool((p["start"] != 0).any()):
            raise graph.refuse(layer, "its reset subtracts, and its potential does not begin at 0")
        decay, gain, rest_, threshold = (
            graph.each(v, layer.shape) for v in (p["decay"], p["gain"], rest, p["threshold"])
        )
        back = graph.each(-p["decay"] * (p["threshold"] - p["reset"]) / p["gain"], layer.shape)
        if (decay == 1).all():
            membrane = nir.I(r=gain / graph.dt)
        elif (decay == 1).any():
            raise graph.refuse(layer, "some of its channels leak and some do not; NIR needs a node for each kind")
        else:
            membrane = nir.LI(graph.dt / (1 - decay), gain / (1 - decay), rest_)
        graph.node(layer, membrane, suffix="_membrane")
        (integrates,) = graph.sources[layer.output]
        graph.node(layer, nir.Threshold(threshold), source=layer.output)
        (fires,) = graph.sources[layer.output]
        graph.node(layer, nir.Scale(back), suffix="_reset", source=layer.output)
        (resets,) = graph.sources[layer.output]
        graph.edges.append((resets, integrates))
        graph.sources[layer.output] = [fires]
        graph.binary.add(layer.output)


def _steps(layer: LoweredLayer, steps: list[Tensor], dims: int) -> Any:
    """Whether each neuron fires, step by step, for inputs [N, C, ...] with `dims` axes behind N."""
    p = {name: channelwise(value, dims) for name, value in layer.tensors.items()}
    soft, strict = bool(layer.options["soft"]), bool(layer.options["strict"])
    v: Tensor = p["start"]
    for current in steps:
        v_pre = charge(current, v, p["decay"], p["gain"], p["shift"])
        if soft:
            fired = v_pre > p["threshold"] if strict else v_pre >= p["threshold"]
            v = reset_after(v_pre, fired, p["threshold"] - p["reset"], None)
        else:
            fired, v = fire_and_reset(v_pre, p["threshold"], p["reset"], strict=strict)
        yield fired
