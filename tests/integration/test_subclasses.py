"""Subclasses are not their base: layers and neurons with a forward of the user's own are taken by what it does."""

import pytest
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn

import spikeprune as sp
from gallery.oracle import operations
from spikeprune.integrations.spikingjelly import SpikingJelly


class Shifted(layer.Conv2d):
    """Every input value is non-zero once it is shifted."""

    def forward(self, x):
        return super().forward(x + 0.1)


class Clipped(nn.Conv2d):
    def forward(self, x):
        return F.conv2d((x - 0.5).relu(), self.weight, self.bias, padding=1)


class Thinned(layer.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x * (torch.arange(x.shape[-1]) % 2), weight, bias)


def net(conv):
    torch.manual_seed(0)
    layers = nn.Sequential(layer.Conv2d(2, 8, 3, padding=1), neuron.LIFNode(surrogate_function=surrogate.ATan()), conv)
    layers.extend([neuron.LIFNode(surrogate_function=surrogate.ATan()), layer.Flatten(), layer.Linear(8 * 36, 5)])
    functional.set_step_mode(layers, "m")
    layers[0].weight.data.mul_(4)
    layers[2].weight.data.mul_(4) if not list(conv.children()) else None
    return layers


LAYERS = {
    "shifted": lambda: Shifted(8, 8, 3, padding=1),
    "own _conv_forward": lambda: Thinned(8, 8, 3, padding=1),
    "of torch": lambda: layer.SeqToANNContainer(Clipped(8, 8, 3, padding=1)),
}
X = torch.rand(4, 3, 2, 6, 6, generator=torch.Generator().manual_seed(1)) * 3


@pytest.mark.parametrize("make", list(LAYERS.values()), ids=list(LAYERS))
def test_a_layer_with_its_own_forward_is_counted_by_what_it_multiplies(make):
    model = net(make()).eval()
    found = sp.count(model, [X], time="first")
    functional.reset_net(model)
    assert found.dense.synops == pytest.approx(operations(model, X)[0] / 3)
    name = "2.0" if "2.0.weight" in dict(model.named_parameters()) else "2"
    assert found.layers[name].dense.parameters >= 8 * 8 * 9
    assert found.layers[name].dense.synops > 0


def test_instance_with_another_forward_is_counted_by_it():
    model = net(layer.Conv2d(8, 8, 3, padding=1)).eval()
    kept = model[2].forward
    model[2].forward = lambda x: kept(x + 0.1)
    found = sp.count(model, [X], time="first")
    functional.reset_net(model)
    assert found.dense.synops == pytest.approx(operations(model, X)[0] / 3)


def test_synapses_of_a_subclass_are_scored_by_the_input_that_reaches_them():
    class Beside(nn.Module):
        """The same written beside a plain layer."""

        def __init__(self, conv):
            super().__init__()
            self.conv = conv

        def forward(self, x):
            return self.conv(x + 0.1)

    scores = []
    for conv in (Shifted(8, 8, 3, padding=1), Beside(layer.Conv2d(8, 8, 3, padding=1))):
        model = net(conv)
        (conv if isinstance(conv, Shifted) else conv.conv).load_state_dict(_weights())
        pruner = sp.Pruner(model, sp.Criticality(regrow=sp.Constant(0.3), unit="synapse"), sp.OneShot(0.6))
        pruner.observe([X])
        scores.append(next(s for n, s in pruner._observer.statistics(lambda s: s).items() if n.startswith("2.")))
    assert scores[0].max() > 0
    torch.testing.assert_close(scores[0], scores[1])


def _weights():
    torch.manual_seed(4)
    return layer.Conv2d(8, 8, 3, padding=1).state_dict()


# -- neurons ---------------------------------------------------------------------------------------------------------

BASE = neuron.SimpleBaseNode if hasattr(neuron, "SimpleBaseNode") else neuron.BaseNode


class Ported(neuron.LIFNode):
    """Written for SpikingJelly 0.0.0.0.14; 2.0 runs the forward of LIFNode and calls neither of these."""

    def neuronal_charge(self, x):
        self.v = self.v * 0.25 + x

    def neuronal_reset(self, spike):
        self.v = self.v - 0.5 * spike


class Charges(neuron.LIFNode):
    def neuronal_charge(self, x):
        self.v = self.v * 0.25 + x


class HighThreshold(BASE):
    def neuronal_charge(self, x):
        self.v = self.v * 0.5 + x

    def neuronal_fire(self):
        return self.surrogate_function(self.v - 2 * self.v_threshold)


class AtOnce(BASE):
    def neuronal_charge(self, x):
        self.v = self.v * 0.5 + x

    def multi_step_forward(self, x):
        return self.surrogate_function(x.cumsum(0) - 1.5)


@pytest.mark.parametrize("cls", [Ported, Charges, HighThreshold, AtOnce])
def test_the_potential_of_a_subclass_is_the_one_that_fires(cls):
    node = cls(surrogate_function=surrogate.ATan(), step_mode="m")
    x = torch.rand(6, 3, 5, generator=torch.Generator().manual_seed(0)) * 2
    u = torch.stack(list(SpikingJelly().potentials(node, (x,))))
    spikes = node(x)
    assert 0.1 < spikes.mean() < 0.9
    assert torch.equal((u >= 0).float(), spikes)
