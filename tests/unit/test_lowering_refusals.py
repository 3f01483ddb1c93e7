"""What the operations of the compiled engine do not know is refused where the traced modules become layers.

`sp.compile` then rolls the recorded forward into one step, so many of these models compile after all; here the first
way is asked alone.
"""

import pytest
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn

import spikeprune as sp
from spikeprune.core.errors import InvalidValue, RunFailed
from spikeprune.model.discover import spiking_adapter
from spikeprune.runtime.bench import assert_same_spikes
from spikeprune.runtime.compile.lower import lower_modules
from spikeprune.runtime.follow import Batch
from spikeprune.runtime.steps.lower import _lowered


class _Net(nn.Module):
    """Two convolutions with neurons; `between` changes what the first neuron gives."""

    def __init__(self, *modules, between=lambda x: x, last=lambda x: x):
        super().__init__()
        self.first, self.fire = layer.Conv2d(2, 2, 3, padding=1), neuron.LIFNode()
        self.inner = nn.Sequential(*modules)
        self.between, self.last = between, last
        functional.set_step_mode(self, "m")

    def forward(self, x):
        return self.last(self.inner(self.between(self.fire(self.first(x)))))


def conv(*args, **settings):
    return layer.Conv2d(2, 2, *args, **settings)


REFUSED = {
    "transposed": (_Net(layer.ConvTranspose2d(2, 2, 3)), r"'inner\.0' \(ConvTranspose2d\): only nn\.Conv2d"),
    "circular": (_Net(conv(3, padding=1, padding_mode="circular")), "padding_mode='circular' is not supported"),
    "even": (_Net(conv(2, padding="same")), "padding='same' with an even kernel is not supported"),
    "maximum": (_Net(layer.SeqToANNContainer(nn.AdaptiveMaxPool2d(2))), "only 2-d max, average and adaptive"),
    "dilated": (_Net(layer.MaxPool2d(2, dilation=2)), "max pooling with dilation or indices is not supported"),
    "neuron": (_Net(neuron.QIFNode()), r"'inner\.0' \(QIFNode\): only plain IF, LIF and PLIF neurons"),
    "norm": (_Net(layer.GroupNorm(1, 2)), r"'inner\.0' \(GroupNorm\): "),
    "constant": (_Net(between=lambda x: x + torch.ones(2, 4, 4)), "only the sum of two traced tensors of one shape"),
    "broadcast": (_Net(between=lambda x: x + x[:, :, :1]), "cannot compile"),
    "steps apart": (_Net(between=lambda x: x.reshape(3, 2, 4, 8)), r"reshaping .* to \[3, 2, 4, 8\] is not supported"),
    "functional": (_Net(between=lambda x: F.linear(x, torch.eye(4))), "only nn.Linear is supported|not supported"),
    "samples": (_Net(last=lambda x: x.mean(1)), r"only the mean or sum over time, dim=0 of \[T, N, ...\]"),
    "kept": (_Net(last=lambda x: x.sum(0, keepdim=True)), "only the mean or sum over time"),
    "stacked": (_Net(last=lambda x: torch.stack([x[0], x[1]])), "cannot compile"),
    "two": (_Net(last=lambda x: (x, x + x)), "a compiled model returns one tensor, this one returns 2"),
    "merged": (_Net(last=lambda x: x.flatten(0, 1)), "returns time and batch in one axis"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_by_name(name):
    model, words = REFUSED[name]
    with pytest.raises(InvalidValue, match=words) as caught:
        lower_modules(model.eval(), torch.rand(3, 2, 2, 4, 4))
    assert "\n" not in str(caught.value)
    assert 20 <= len(str(caught.value)) <= 300


def test_their_honest_neighbour_is_lowered():
    model = _Net(conv(3, padding="same"), layer.MaxPool2d(2), last=lambda x: x.mean(0))
    network = lower_modules(model.eval(), torch.rand(3, 2, 2, 4, 4))
    assert [made.kind for made in network.layers] == ["conv", "neuron", "conv", "pool", "reduce"]


class _Loop(nn.Module):
    """A loop over time [T, N, 6] with a neuron inline; `charge` makes the input current of a step."""

    def __init__(self, charge):
        super().__init__()
        self.a, self.charge = nn.Linear(6, 6), charge

    def forward(self, x):
        v, out = 0, []
        for step in x:
            v = 0.5 * v + self.charge(self.a, step)
            spike = surrogate.atan.apply(v - 0.3, 2.0)
            v = v * (1 - spike)
            out.append(spike)
        return torch.stack(out)


def _against(x, y):
    return torch.bmm(x[:, None], y[:, :, None])[:, :, 0]


MIXED = {
    "sum": (lambda a, x: a(x + x.flip(0)), "mixes samples of the batch"),
    "product": (lambda a, x: _against(a(x), x.flip(0)), "mixes samples of the batch"),
    "all pairs": (lambda a, x: a(x) @ x.T, "multiplies a weight with time or samples on its right side"),
    "weights": (lambda a, x: F.conv1d(a(x)[:, None], x[:1, None, :3])[:, 0], "has weights that depend on the input"),
    "the first": (lambda a, x: a(x[:1]).expand(2, 6), "does not treat every sample of the batch alike"),
}


def _rolled(charge):
    model = _Loop(charge)
    return _lowered(model, spiking_adapter(model), torch.rand(4, 2, 6), Batch(1, 1), 0, 4)


@pytest.mark.parametrize("name", MIXED)
def test_a_step_that_mixes_samples_is_refused(name):
    """`lower_any` asks for a batch axis first; these guards stand behind that."""
    charge, words = MIXED[name]
    with pytest.raises(InvalidValue, match=f"cannot compile .*{words}"):
        _rolled(charge)


def test_a_step_that_keeps_samples_apart_is_rolled():
    assert _rolled(lambda a, x: _against(a(x), x)).T == 4


def test_a_compiled_network_of_other_weights_is_not_timed():
    x = torch.rand(3, 2, 2, 4, 4) * 4
    model, other = _Net().eval(), _Net().eval()
    with torch.no_grad():
        other.first.weight.fill_(0.2)
        model.first.weight.fill_(-0.2)
    compiled = sp.compile(other, x)
    assert_same_spikes(other, compiled, x)
    with pytest.raises(RunFailed, match=r"\d+ of 192 spikes of 'fire' differ from the model's; not timed"):
        assert_same_spikes(model, compiled, x)
