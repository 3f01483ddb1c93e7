"""One toy network in SpikingJelly, snnTorch, Norse and plain PyTorch: same masks, counts and squeezed weights."""

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from norse.torch.functional.lif_box import LIFBoxParameters
from norse.torch.functional.reset import reset_value
from spikingjelly.activation_based import neuron, surrogate
from torch import nn

import spikeprune as sp
from spikeprune.model.adapter import find_adapter

T, N = 6, 8


class Fire(torch.autograd.Function):
    """Spikes at u > 0, with the derivative of ATan, alpha = 2."""

    @staticmethod
    def forward(ctx, u):
        ctx.save_for_backward(u)
        return (u > 0).to(u)

    @staticmethod
    def backward(ctx, grad):
        (u,) = ctx.saved_tensors
        return grad / (1 + (torch.pi * u).square())


class Own(nn.Module):
    """v_pre = decay v + gain x; a soft reset subtracts the threshold of 1, a hard one sets v to 0."""

    def __init__(self, decay, gain, soft):
        super().__init__()
        self.decay, self.gain, self.soft, self.v = decay, gain, soft, None

    def reset(self):
        self.v = None

    def forward(self, x):
        v = self.gain * x if self.v is None else self.decay * self.v + self.gain * x
        s = Fire.apply(v - 1)
        self.v = v - s if self.soft else v * (1 - s)
        return s


class Toy(nn.Module):
    """Linear - neuron - linear - neuron - linear in a loop over [T, N, 20]; `state` for cells that hand it over."""

    def __init__(self, make, state=False):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(20, 16), nn.Linear(16, 12), nn.Linear(12, 5)
        self.n1, self.n2, self.state = make(), make(), state
        with torch.no_grad():
            self.a.weight.mul_(3)
            self.b.weight.mul_(8)

    def forward(self, x):
        one = two = None
        out = 0
        for module in (self.n1, self.n2):
            begin = getattr(module, "reset_mem", getattr(module, "reset", None))
            if begin is not None:
                begin()
        for step in x:
            if self.state:
                step, one = self.n1(self.a(step), one)
                step, two = self.n2(self.b(step), two)
            else:
                step = self.n2(self.b(self.n1(self.a(step))))
            out = out + self.c(step)
        return out


def box():
    p = LIFBoxParameters(
        tau_mem_inv=torch.tensor(500.0), v_leak=torch.tensor(0.0), v_th=torch.tensor(1.0), v_reset=torch.tensor(0.0),
        reset_method=reset_value,
    )  # fmt: skip
    return norse.LIFBoxCell(p, dt=0.001)


SOFT = {  # integrate and fire: v_pre = v + x
    "SpikingJelly": lambda: Toy(lambda: neuron.IFNode(v_reset=None, surrogate_function=surrogate.ATan(alpha=2.0))),
    "snnTorch": lambda: Toy(lambda: snn.Leaky(beta=1.0, init_hidden=True, reset_mechanism="subtract")),
    "own": lambda: Toy(lambda: Own(1.0, 1.0, soft=True)),
}
HARD = {  # leaky: v_pre = v / 2 + x / 2
    "SpikingJelly": lambda: Toy(lambda: neuron.LIFNode(tau=2.0, surrogate_function=surrogate.ATan(alpha=2.0))),
    "Norse": lambda: Toy(box, state=True),
    "own": lambda: Toy(lambda: Own(0.5, 0.5, soft=False)),
}


def results(model):
    """Masks after one cut by criticality, operations and rates per sample, and the weights after a squeeze."""
    x = torch.rand(T, N, 20, generator=torch.Generator().manual_seed(1)) * 2
    counts = sp.count(model, [x], time="first")
    figures = (counts.dense.macs, counts.dense.acs, counts.dense.mac_ops, counts.samples)
    rates = sorted(counts.firing_rates.values())
    pruner = sp.Pruner(model, sp.Criticality(regrow=sp.Constant(0.3), surrogate="atan"), sp.OneShot(0.6))
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    pruner.observe([x])
    pruner.cut()
    masks = [(m, pruner.regrown_alive[n]) for n, m in pruner.masks.items()]
    pruner.finish()
    model.load_state_dict(start, strict=False)
    sp.squeeze(model, [x], 0.5, images=N, rounds=2, time="first", surrogate="atan")
    return figures, rates, masks, [layer.weight.detach() for layer in (model.a, model.b, model.c)]


@pytest.mark.parametrize("neurons", [SOFT, HARD], ids=["soft reset", "hard reset"])
def test_the_same_network_gives_the_same_everywhere(neurons):
    figures, rates, masks, weights = results(neurons["own"]())
    assert 0.02 < rates[0] < rates[1] < 0.98
    assert any(regrown.any() for _, regrown in masks)
    for name in [name for name in neurons if name != "own"]:
        model = neurons[name]()
        assert find_adapter(model) is not None
        other = results(model)
        assert other[0] == figures, name
        assert other[1] == pytest.approx(rates), name
        for (mask, regrown), (wanted, back) in zip(other[2], masks, strict=True):
            assert torch.equal(mask, wanted), name
            assert torch.equal(regrown, back), name
        for weight, wanted in zip(other[3], weights, strict=True):
            torch.testing.assert_close(weight, wanted, rtol=1e-3, atol=1e-4)  # solved in float32
