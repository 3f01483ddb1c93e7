"""`sp.fuse` on neurons of the user's own, told by an adapter in the user's file; and on subclasses of layers."""

import copy

import pytest
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn
from torch.testing import assert_close

from spikeprune.model import adapter as adapters
from spikeprune.model.adapter import Adapter, NeuronParams, register_adapter
from spikeprune.model.fusing import Fusing
from spikeprune.runtime.fuse import fuse, fuse_report, recording_criticality
from spikeprune.runtime.fuse.neurons import surrogate_of


class Arctangent(torch.autograd.Function):
    """Heaviside step with the derivative 1.5 / (1 + (1.5 pi u)^2)."""

    @staticmethod
    def forward(ctx, u):
        ctx.save_for_backward(u)
        return (u >= 0).to(u.dtype)

    @staticmethod
    def backward(ctx, g):
        (u,) = ctx.saved_tensors
        return g * 1.5 / (1 + (1.5 * torch.pi * u).square())


class Membrane(nn.Module):
    """A leaky neuron of the user's own: [T, N, ...] in, spikes out, the potential kept in `u` until `forget`."""

    def __init__(self, leak=0.25, threshold=0.6, soft=False):
        super().__init__()
        self.leak, self.threshold, self.soft = leak, threshold, soft
        self.u = None

    def forget(self):
        self.u = None

    def forward(self, x):
        u = torch.zeros_like(x[0]) if self.u is None else self.u
        spikes = []
        for current in x:
            h = (1 - self.leak) * u + current
            spikes.append(Arctangent.apply(h - self.threshold))
            u = h - self.threshold * spikes[-1] if self.soft else (1 - spikes[-1]) * h
        self.u = u
        return torch.stack(spikes)


class MembraneFusing(Fusing):
    def carried(self, neuron, N, shape):
        return 0.0 if neuron.u is None else neuron.u

    def carry(self, neuron, v):
        neuron.u = v


class MembraneAdapter(Adapter):
    name = "membrane"

    def is_neuron(self, module):
        return isinstance(module, Membrane)

    def reset(self, model):
        for module in model.modules():
            if isinstance(module, Membrane):
                module.forget()

    def begins(self, neuron, args):
        return neuron.u is None

    def potentials(self, neuron, args):
        raise NotImplementedError

    def surrogate(self, neuron):
        return Arctangent.apply

    def smooth(self, neuron, u):
        return torch.atan(1.5 * torch.pi * u) / torch.pi + 0.5

    def describe(self, neuron):
        reset = None if neuron.soft else 0.0
        return NeuronParams(decay=1 - neuron.leak, gain=1.0, v_threshold=neuron.threshold, v_reset=reset)

    def multi_step(self, module):
        return isinstance(module, Membrane)

    def states(self, model):
        return [(m, m.u) for m in model.modules() if isinstance(m, Membrane)]

    def restore(self, model, states):
        for module, u in states:
            module.u = u

    def fusing(self):
        return MembraneFusing()


class OverTime(nn.Module):
    """Layers of torch on [T, N, ...]."""

    def __init__(self, *layers):
        super().__init__()
        self.body = nn.Sequential(*layers)

    def forward(self, x):
        return self.body(x.flatten(0, 1)).unflatten(0, x.shape[:2])


@pytest.fixture
def outside(monkeypatch):
    monkeypatch.setattr(adapters, "_registered", [])
    register_adapter(MembraneAdapter())


def net(soft=False):
    torch.manual_seed(0)
    return nn.Sequential(
        OverTime(nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6)), Membrane(),
        OverTime(nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8)), Membrane(0.5, 0.4, soft),
    )  # fmt: skip


@pytest.mark.parametrize("soft", [False, True])
def test_an_outside_neuron_is_fused_by_its_adapter_alone(soft, outside):
    plain = net(soft).double()
    fused = fuse(copy.deepcopy(plain))
    for step in range(3):  # potentials are carried over from call to call
        x = torch.rand(4, 3, 2, 9, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(step)) * 3
        found = []
        for model in (plain, fused):
            model.zero_grad()
            out = model(x)
            (out.sum(0) * torch.linspace(-1, 1, 8, dtype=torch.float64).view(8, 1, 1)).square().sum().backward()
            for module in model.modules():
                if isinstance(module, Membrane):
                    module.u = module.u.detach()
            found.append((out, [p.grad for p in model.parameters()], list(model.buffers())))
        assert found[0][0].any()
        assert_close(found[1], found[0])
        assert torch.equal(found[0][0], found[1][0])
    rows = {row.name: row for row in fuse_report(fused)}
    assert rows["1"].fused
    assert rows["3"].norm == "2.body.1"
    with recording_criticality(fused) as found:
        fused(x)
    assert found["1"].shape == (6,)


def test_an_adapter_that_does_not_tell_is_named(outside, monkeypatch):
    monkeypatch.setattr(MembraneAdapter, "fusing", Adapter.fusing)
    rows = {row.name: row for row in fuse_report(fuse(net()))}
    assert not rows["1"].fused
    assert "membrane does not tell" in rows["1"].reason


@pytest.mark.parametrize(
    ("ours", "alpha"), [(surrogate.ATan(alpha=2.5), 2.5), (surrogate.Sigmoid(alpha=3.0), 3.0)], ids=["atan", "sigmoid"]
)
def test_the_steepness_is_found_from_the_derivative(ours, alpha):
    node = neuron.LIFNode(surrogate_function=ours, step_mode="m")
    name, found, strict = surrogate_of(adapters.adapter_for(node), node, None)
    assert name == type(ours).__name__.lower()
    assert found == pytest.approx(alpha, rel=1e-12)
    assert not strict


class Rectangle(torch.autograd.Function):
    """Heaviside step with the derivative 1 within half of a unit."""

    @staticmethod
    def forward(ctx, u):
        ctx.save_for_backward(u)
        return (u > 0).to(u.dtype)

    @staticmethod
    def backward(ctx, g):
        (u,) = ctx.saved_tensors
        return g * (u.abs() < 0.5)


class Triangle(nn.Module):
    """A surrogate of the user's own in the place of the framework's."""

    def forward(self, u):
        g = (1 - u.abs()).clamp(0) * u
        return ((u >= 0).to(u.dtype) - g).detach() + g


UNKNOWN = {
    "Rect": surrogate.Rect,
    "PiecewiseQuadratic": surrogate.PiecewiseQuadratic,
    "LeakyKReLU": surrogate.LeakyKReLU,
    "own function": lambda: Rectangle.apply,
    "straight through": Triangle,
}


@pytest.mark.parametrize("make", list(UNKNOWN.values()), ids=list(UNKNOWN))
@pytest.mark.parametrize("node", [neuron.LIFNode, neuron.ParametricLIFNode])
def test_an_unknown_surrogate_is_asked_for_its_derivative(make, node):
    torch.manual_seed(0)
    plain = nn.Sequential(
        layer.Conv2d(2, 6, 3, padding=1), layer.BatchNorm2d(6), node(v_threshold=0.4, surrogate_function=make()),
        layer.Conv2d(6, 8, 3, padding=1), layer.BatchNorm2d(8),
        node(v_reset=None, detach_reset=True, surrogate_function=make()),
    )  # fmt: skip
    functional.set_step_mode(plain.double(), "m")
    fused, found = fuse(copy.deepcopy(plain)), []
    x = torch.rand(4, 3, 2, 5, 7, dtype=torch.float64) * 3
    for model in (plain, fused):
        out = model(x)
        (out.sum(0) * torch.linspace(-1, 1, 8, dtype=torch.float64).view(8, 1, 1)).square().sum().backward()
        found.append((out, [p.grad for p in model.parameters()], list(model.buffers()), model[2].v))
        functional.reset_net(model)
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1][0].abs().max() > 0
    assert_close(found[1], found[0])
    assert [row.norm for row in fuse_report(fused) if row.name in "25"] == ["1", "4"]


def test_a_function_that_fires_more_than_spikes_keeps_its_forward():
    class Graded(surrogate.ATan):
        def forward(self, u):
            return super().forward(u) + super().forward(u - 1)

    fused = fuse(nn.Sequential(layer.Linear(4, 4), neuron.IFNode(surrogate_function=Graded())))
    assert "gives other values than 0" in next(row.reason for row in fuse_report(fused) if row.name == "1")


class Scaled(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(x, self.weight * 3.0, self.bias, self.stride, self.padding)


class Shifted(layer.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight * 3.0, bias)


@pytest.mark.parametrize(
    "make",
    [
        lambda: layer.WSConv2d(8, 8, 3, padding=1),
        lambda: layer.SeqToANNContainer(Scaled(8, 8, 3, padding=1)),
        lambda: Shifted(8, 8, 3, padding=1),
        lambda: layer.SeqToANNContainer(nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 3, padding=1))),
    ],
    ids=["standardised", "subclass", "own _conv_forward", "weight norm"],
)
def test_a_subclass_keeps_its_own_arithmetic(make):
    torch.manual_seed(0)
    first, second = (neuron.LIFNode(v_threshold=0.2, surrogate_function=surrogate.ATan()) for _ in range(2))
    plain = nn.Sequential(layer.Conv2d(2, 8, 3, padding=1), first, make(), second)
    functional.set_step_mode(plain, "m")
    fused = fuse(copy.deepcopy(plain))
    x = torch.rand(3, 4, 2, 16, 16) * 6
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            a, b = plain(x), fused(x)
        functional.reset_net(plain)
        functional.reset_net(fused)
        assert a.any()
        assert int((a != b).sum()) <= 2  # ties
        if grad:
            a.sum().backward()
            b.sum().backward()
            for (name, p), q in zip(plain.named_parameters(), fused.parameters(), strict=True):
                assert p.grad is not None, name
                assert_close(q.grad, p.grad, rtol=1e-3, atol=1e-4)
