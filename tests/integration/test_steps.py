"""Models with a loop of their own, of any framework, compiled: equal outputs at other T and N, refused or the same."""

import copy

import pytest
import torch
from torch import nn

import spikeprune as sp
from gallery.loops import Rect
from gallery.nets import ENTRIES
from gallery.run import answer
from spikeprune.core.errors import InvalidValue

pytest.importorskip("norse")
pytest.importorskip("snntorch")

NEURONS = {"inline": 3, "time last": 3, "single step": 3, "snntorch hidden": 3, "norse functional": 3, "sew iand": 4}


@pytest.mark.parametrize("name", list(NEURONS))
def test_a_compiled_network_computes_the_model(name, tmp_path):
    entry = ENTRIES[name]
    net, x = entry.network(), entry.example()
    state = copy.deepcopy(net.state_dict())
    compiled = sp.compile(net, x)
    assert net.training
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    net.eval()
    assert sum(row.kind == "neuron" for row in compiled.plan()) == NEURONS[name]
    axis = 0 if entry.time == "first" else x.dim() - 1
    longer = torch.cat([x, x.flip(axis)], axis)
    compiled.save(tmp_path / "net.compiled")
    for run in (compiled, sp.load(tmp_path / "net.compiled")):
        for y in (x, longer):
            wanted = answer(net, y)
            assert wanted.std() > 0.01
            torch.testing.assert_close(run(y), wanted, rtol=1e-3, atol=1e-4)


class Loop(nn.Module):
    """One layer and a neuron in a loop; subclasses say how a step goes."""

    def __init__(self):
        super().__init__()
        self.a, self.out = nn.Linear(6, 8), nn.Linear(8, 3)

    def charge(self, t, v, x):
        return 0.5 * v + self.a(x)

    def forward(self, x):
        v = total = 0
        for t, step in enumerate(x):
            v = self.charge(t, v, step)
            s = Rect.apply(v - 0.3)
            v = v - s * 0.3
            total = total + self.out(s)
        return total


class Deciding(Loop):
    def charge(self, t, v, x):
        return 0.5 * v + (self.a(x) if float(x.max()) < 1e6 else -self.a(x))


class Comparing(Loop):
    def charge(self, t, v, x):
        return 0.5 * v + (self.a(x) if torch.equal(x, x.abs()) else -self.a(x))


class Nearing(Loop):
    def charge(self, t, v, x):
        return 0.5 * v + (self.a(x) if torch.allclose(x, x.abs()) else -self.a(x))


class Inside(Loop):
    """The module that decides is named."""

    def __init__(self):
        super().__init__()
        self.a = nn.Sequential(self.a, Branch())


class Branch(nn.Module):
    def forward(self, x):
        return x if torch.equal(x, x.relu()) else 0.9 * x


class Ageing(Loop):
    def charge(self, t, v, x):
        return 0.5**t * v + self.a(x)


class Mixing(Loop):
    def charge(self, t, v, x):
        return 0.5 * v + self.a(x.flip(0))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Deciding, "decides by a value"),
        (Comparing, "decides by a value"),
        (Nearing, "decides by a value"),
        (Inside, r"'a\.1' decides by a value"),
        (Ageing, "at each time step"),
        (Mixing, "sample"),
    ],
)
def test_what_is_not_the_same_at_every_step_is_refused(kind, words):
    with pytest.raises(InvalidValue, match=words) as raised:
        sp.compile(kind(), torch.rand(6, 4, 6))
    text = str(raised.value)
    assert 20 <= len(text) <= 300
    assert not any(word in text.lower() for word in ("spikingjelly", "snntorch", "norse"))


def test_a_quiet_network_is_compiled_as_it_is():
    net = Loop()
    with torch.no_grad():
        net.a.weight.mul_(1e-3)
        net.a.bias.zero_()
    x = torch.rand(6, 4, 6)
    compiled = sp.compile(net, x)
    net.a.weight.data.mul_(1e3)  # the compiled one keeps its own weights
    loud = torch.rand(6, 4, 6) * 4000
    with torch.no_grad():
        wanted = copy.deepcopy(net)
        wanted.a.weight.data.mul_(1e-3)
        torch.testing.assert_close(compiled(loud), wanted(loud), rtol=1e-3, atol=1e-4)


def test_numbers_that_depend_on_the_length_are_told():
    class Averaged(Loop):
        def forward(self, x):
            return super().forward(x) / len(x)

    compiled = sp.compile(Averaged(), torch.rand(6, 4, 6))
    with pytest.raises(InvalidValue, match="T = 6 steps, got 5"):
        compiled(torch.rand(5, 4, 6))


class Delayless(nn.Module):
    """A neuron that subtracts its threshold in two places at the first step, of which one is its state's."""

    def __init__(self):
        super().__init__()
        snntorch = pytest.importorskip("snntorch")
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 5)
        self.n = snntorch.Leaky(
            beta=0.75, threshold=0.5, reset_mechanism="zero", reset_delay=False, init_hidden=True
        )  # fmt: skip

    def forward(self, x):
        return torch.stack([self.b(self.n(self.a(step))) for step in x]).mean(0)


def test_a_state_begins_as_the_models():
    net = Delayless().eval()
    fast = sp.compile(net, torch.rand(5, 3, 6))
    x = 2 * torch.randn(7, 40, 6, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(fast(x), answer(net, x))
