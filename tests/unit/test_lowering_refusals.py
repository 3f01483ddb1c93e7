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
from spikeprune.runtime.compile.ops import base
from spikeprune.runtime.follow import Batch
from spikeprune.runtime.steps.capture import captured
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


def _stepwise(net):
    functional.set_step_mode(net.inner, "s")
    return net


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
    "stacked later": (_Net(last=lambda x: torch.stack([x, x])), "only an image stacked T times is supported"),
    "maps": (_Net(layer.Linear(4, 4)), r"it reads \[2, 4, 4\] of each image and step, and must read one row"),
    "one step": (_stepwise(_Net(neuron.IFNode())), r"the neuron must be multi-step and see \[T, N, ...\]"),
    "nothing": (_Net(last=lambda x: torch.zeros(3)), "output does not depend on its input, so there is nothing"),
    "two": (_Net(last=lambda x: (x, x + x)), "a compiled model returns one tensor, this one returns 2"),
    "merged": (_Net(last=lambda x: x.flatten(0, 1)), "returns time and batch in one axis; let it return"),
}  # fmt: skip


class _Still(nn.Module):
    """Shows an image at four steps to neurons that take one step each."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(layer.Conv2d(2, 2, 1), neuron.IFNode())

    def forward(self, x):
        return torch.stack([self.body(step) for step in x.unsqueeze(0).repeat(4, 1, 1, 1, 1)]).mean(0)


def test_steps_that_the_model_keeps_to_itself_are_asked_for():
    with pytest.raises(InvalidValue, match=r"no multi-step neuron, so its number of steps cannot be told; .*step_mode"):
        sp.compile(_Still(), torch.rand(2, 2, 4, 4))


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


class _Doubled(layer.BatchNorm2d):
    """Computes something else than its class says, and the same for an input of zeros."""

    def forward(self, x):
        return 2 * super().forward(x)


class _Sometimes(nn.Module):
    """Calls its neuron for inputs that are not loud alone."""

    def __init__(self):
        super().__init__()
        self.fire = neuron.IFNode(step_mode="m")

    def forward(self, x):
        return self.fire(x) if x.numpy().max() <= 1 else x


UNLIKE = {
    "the output": (_Net(_Doubled(2)), 4.0, "what follows the last neuron: the output differs from the model's"),
    "a quiet output": (_Net(_Doubled(2)), 0.0, r"outputs differ from the model's by .* one of 'inner\.0' is not what"),
    "a quiet current": (
        _Net(_Doubled(2), neuron.IFNode()), 0.0,
        r"up to 'inner\.1': its input currents differ .* one of 'inner\.0' comp"
    ),
    "the calls": (
        nn.Sequential(_Sometimes()), 1.0,
        r"'0\.fire': the forward did not call it .*; let it do the same for every input"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", UNLIKE)
def test_layers_that_are_not_what_they_seem_are_refused(name):
    """`sp.compile` then records what they compute."""
    model, scale, words = UNLIKE[name]
    for name, parameter in model.named_parameters():
        if name == "first.bias":  # a quiet example makes nothing fire, and the generated one does
            parameter.data.fill_(scale)
    with pytest.raises(InvalidValue, match=f"cannot compile .*{words}"):
        lower_modules(model.eval(), torch.rand(3, 2, 2, 4, 4) * scale)


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
    "places": (lambda a, x: a(x) + torch.stack([x[0].roll(1), x[1]]), "reads other values for one sample of the batch"),
    "constants": (lambda a, x: a(x) + torch.arange(12.0).view(2, 6), "its 'add' has constants that differ between"),
    "constants beside": (
        lambda a, x: a(torch.cat([x[:, 1:], torch.arange(2.0)[:, None]], 1)),
        "'a': its 'addmm' has constants that differ between samples",
    ),
    "statistics": (lambda a, x: F.batch_norm(a(x), None, None, training=True), "takes its statistics from the batch"),
    "a reduction": (lambda a, x: a(x) + _over_samples(x), "reduces an axis along which the samples of the batch lie"),
    "the first": (lambda a, x: a(x[:1]).expand(2, 6), "does not treat every sample of the batch alike"),
}  # fmt: skip


def _over_samples(x):
    """A sum over samples that looks as if each of its numbers came from one sample alone."""
    y = x[:, :4].reshape(2, 2, 2).clone()
    y[0, 1, 1] = y[1, 0, 1] = y[1, 1, 0] = 0
    return y.sum(0).view(4).repeat(2)[:6]


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


def test_a_forward_that_returns_two_tensors_is_not_rolled():
    with pytest.raises(InvalidValue, match="returns one tensor, this one returns tuple; wrap it in a module"):
        captured(_Net(last=lambda x: (x, x)), torch.rand(4, 2, 2, 4, 4))


class _Forgetful(base.Operation):
    """An operation of a user's own whose `lower` takes a node and makes no layer of it."""

    name = "forgetful"
    reads = ("other",)

    def lower(self, node, to):
        return node.name == "cos"

    def check(self, layer, inputs):
        base.expect(layer, inputs, set(), set())
        return inputs[0]

    def compute(self, layer, values, static, T):
        return values[0].cos()


class _Cosine(_Forgetful):
    """What CONTRIBUTING asks of an operation at least."""

    name = "cosine"

    def lower(self, node, to):
        if super().lower(node, to):
            to.put(node, self)
        return node.name == "cos"


@pytest.fixture
def operations(monkeypatch):
    monkeypatch.setattr(base, "_OPERATIONS", dict(base._OPERATIONS))


def test_an_operation_of_ones_own_must_make_a_layer(operations):
    base.register(_Forgetful)
    with pytest.raises(
        InvalidValue, match=r"'cos' \(function\): its operation made no layer of it; let its lower call"
    ):
        lower_modules(_Net(between=lambda x: x.cos()).eval(), torch.rand(3, 2, 2, 4, 4))


def test_an_operation_of_ones_own_is_compiled_and_not_in_nir(operations, tmp_path):
    pytest.importorskip("nir")
    base.register(_Cosine)
    model, x = _Net(between=lambda x: x.cos()).eval(), torch.rand(3, 2, 2, 4, 4) * 4
    assert [made.kind for made in sp.compile(model, x).network.layers] == ["conv", "neuron", "cosine"]
    with pytest.raises(InvalidValue, match="cannot export 'cos' to NIR: NIR has no cosine"):
        sp.export_nir(model, tmp_path / "net.nir", x)
    with pytest.raises(InvalidValue, match="two operations are called 'cosine'; give the new one a name of its own"):
        base.register(_Cosine)


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
