"""Recurrent networks, for spikes over time without space."""

import torch
from spikingjelly.activation_based import base, layer, neuron, surrogate
from torch import Tensor, nn

from spikeprune.core.errors import InvalidValue
from spikeprune.zoo.net import SpikingNet
from spikeprune.zoo.registry import Spec


class RecurrentLayer(nn.Module, base.StepModule):
    """A layer of neurons that see their own spikes of the step before: s[t] = LIF(W x[t] + b + V s[t - 1]).

    It takes sequences [T, N, F] only, because s is kept within one call.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.inputs, self.own = nn.Linear(inputs, outputs), nn.Linear(outputs, outputs, bias=False)
        nn.init.orthogonal_(self.own.weight, gain=0.2)
        self.spikes = neuron.LIFNode(tau=2.0, surrogate_function=surrogate.ATan(alpha=2.0), detach_reset=True)
        self.step_mode = "m"

    def forward(self, x: Tensor) -> Tensor:
        if self.step_mode != "m":
            raise InvalidValue(
                f"the network 'recurrent' takes sequences [T, N, ...] only, in step mode 'm', not {self.step_mode!r}; "
                "functional.set_step_mode(net, 'm') sets it"
            )
        fired: list[Tensor] = []
        for step in x:
            current = self.inputs(step)
            if fired:
                current = current + self.own(fired[-1])
            fired.append(self.spikes(current.unsqueeze(0)).squeeze(0))
        return torch.stack(fired)


def recurrent_net(spec: Spec, hidden: tuple[int, ...]) -> SpikingNet:
    """A recurrent layer for each width in `hidden`, then the classifier."""
    features = spec.channels * spec.size**2
    body: list[nn.Module] = []
    for width in hidden:
        body.append(RecurrentLayer(features, width))
        features = width
    return SpikingNet(
        layer.Flatten(),
        nn.Sequential(*body),
        layer.Linear(features, spec.classes),
        T=spec.T,
        image_shape=(spec.channels, spec.size, spec.size),
        repeat="image",
        readout="mean",
    )
