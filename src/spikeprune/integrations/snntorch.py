"""snnTorch 1.0: Leaky, Lapicque, Synaptic and the other neurons derived from SpikingNeuron, hidden or explicit state.

snnTorch hands out the potential after charging when the reset waits for the next step (`reset_delay=True`), and after
the reset otherwise. Criticality needs it before firing in both cases, so the neuron's own forward is run once more
without gradient on its present state, and what it hands to the surrogate last (the first call only computes the
reset of the step before) is read.
"""

from collections.abc import Iterator
from typing import Any

import torch
from snntorch._neurons.neurons import SpikingNeuron
from torch import Tensor, nn

from spikeprune.core.errors import InvalidValue
from spikeprune.model.adapter import Adapter, NeuronParams

# State by name: constants such as beta and threshold are buffers too, and stay.
_STATES = ("mem", "syn", "syn_exc", "syn_inh", "spk")


class SnnTorch(Adapter):
    """Reads snnTorch's neurons. They take one time step, [N, C, ...]; the loop over T stands in the user's forward."""

    name = "snntorch"

    def is_neuron(self, module: nn.Module) -> bool:
        return isinstance(module, SpikingNeuron)

    def reset(self, model: nn.Module) -> None:
        for module in model.modules():
            if self.is_neuron(module):
                for name in _states(module):
                    # Empty, as after construction: the next forward makes zeros of its input's shape.
                    module._buffers[name] = getattr(module, name).detach().new_zeros(0)
                module.__dict__.pop("reset", None)  # the last step's reset signal hangs on the old graph

    def begins(self, neuron: Any, args: tuple[Any, ...]) -> bool:
        """True if the call starts from a membrane potential of 0: none in the input's shape, or 0 everywhere."""
        given = [value for value in args[1:] if isinstance(value, Tensor)]
        state = given[-1] if given else neuron.mem
        return state.shape != args[0].shape or not bool(state.any())

    def multi_step(self, module: nn.Module) -> bool:
        return False

    def potentials(self, neuron: Any, args: tuple[Any, ...]) -> Iterator[Tensor]:
        seen: list[Tensor] = []
        surrogate = neuron.spike_grad

        def spy(u: Tensor) -> Tensor:
            seen.append(u)
            return surrogate(u)

        buffers, attributes = dict(neuron._buffers), dict(neuron.__dict__)
        modules = dict(neuron._modules)
        with torch.no_grad():
            try:
                neuron._modules.pop("spike_grad", None)
                neuron.__dict__["spike_grad"] = spy
                type(neuron).forward(neuron, *[a.detach() if isinstance(a, Tensor) else a for a in args])
            finally:
                neuron.__dict__.clear()
                neuron.__dict__.update(attributes)
                neuron._buffers.clear()
                neuron._buffers.update(buffers)
                neuron._modules.clear()
                neuron._modules.update(modules)
        if not seen:
            raise InvalidValue(
                f"{type(neuron).__name__} fires without its spike_grad, so its potential cannot be read; "
                "register an adapter of your own"
            )
        yield seen[-1]

    def surrogate(self, neuron: nn.Module) -> Any:
        return neuron.spike_grad

    def smooth(self, neuron: nn.Module, u: Tensor) -> Tensor:
        raise InvalidValue(
            f"snnTorch's surrogate of {type(neuron).__name__} is a gradient only and has no smooth forward curve, "
            "which curve='value' needs; give one by name, for example surrogate='atan'"
        )

    def describe(self, neuron: Any) -> NeuronParams | None:
        """The equation of a plain Leaky neuron with reset_mechanism="zero"; None for all others.

        That reset gives the same result whether it is made at once or a step later. The others do not:
        with "subtract", `reset_delay=True` takes the threshold off after the leak, and `False` takes it off a second
        time if the potential is still above it; Lapicque zeroes the next step's input too; "none" never resets.
        """
        plain = type(neuron).__name__ == "Leaky" and not neuron.inhibition and not neuron.state_quant
        if not plain or neuron.reset_mechanism != "zero" or bool((neuron.graded_spikes_factor != 1).any()):
            return None
        return NeuronParams(
            decay=neuron.beta.detach().clamp(0, 1),
            gain=1.0,
            v_threshold=neuron.threshold.detach(),
            v_reset=0.0,
            strict=True,
            detach_reset=neuron.reset_delay,
        )

    def states(self, model: nn.Module) -> Any:
        return [
            (m, {n: m._buffers[n] for n in _states(m)}, m.__dict__.get("reset"))
            for m in model.modules()
            if self.is_neuron(m)
        ]

    def restore(self, model: nn.Module, states: Any) -> None:
        for module, buffers, reset in states:
            module._buffers.update(buffers)
            module.__dict__.pop("reset", None)
            if reset is not None:
                module.__dict__["reset"] = reset


def _states(neuron: nn.Module) -> list[str]:
    return [name for name in _STATES if name in neuron._buffers and name in neuron._non_persistent_buffers_set]
