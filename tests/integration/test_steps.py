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
from spikeprune.runtime.steps import capture

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


def charged(charge):
    """A `Loop` whose membrane potential is charged by this function of (network, t, v, x)."""
    return type("Charged", (Loop,), {"charge": charge})


def beside_the_last(net, t, v, x):
    now = net.a(x)
    before, net.last = net.last if t else now, now
    return 0.5 * v + now + torch.bmm(now[:, None], before[:, :, None])[:, :, 0]


def begun_by_another(net, t, v, x):
    if t:
        return v + net.a(x).sigmoid()
    return torch.ones(len(x), 8) + (torch.full((len(x), 8), 2.0) + net.a(x).relu())


def loud(x):
    return x.detach().numpy().max() > 1.2  # seen by no function of torch


class Twins(Loop):
    """Two neurons that get the same current and reset in two ways."""

    def forward(self, x):
        v = w = total = 0
        for step in x:
            v, w = 0.5 * v + self.a(step), 0.5 * w + self.a(step)
            s, r = Rect.apply(v - 0.3), Rect.apply(w - 0.3)
            v, w = v - s * 0.3, w * (1 - r)
            total = total + self.out(s) - self.out(r)
        return total


def returning(last):
    """A `Loop` that returns this function of (network, the spikes of all steps)."""

    def forward(net, x):
        v, out = 0, []
        for t, step in enumerate(x):
            v = net.charge(t, v, step)
            out.append(Rect.apply(v - 0.3))
            v = v - out[-1] * 0.3
        return last(net, out)

    return type("Returning", (Loop,), {"forward": forward})


def all_but_the_second(net, out):
    return torch.stack([net.out(s) if t != 1 else net.out(-s) for t, s in enumerate(out)])


BEYOND = {
    "softmax": (charged(lambda net, t, v, x: v + net.a(x).softmax(-1)), "its '_softmax' is not known to keep time"),
    "two steps": (charged(beside_the_last), "its 'bmm' reads another time step in a way that is not known"),
    "factors": (
        charged(lambda net, t, v, x: v + torch.addmm(net.a.bias, x, net.a.weight.T, alpha=2)),
        "its 'addmm' has factors of its own, alpha or beta; let it multiply before or after",
    ),
    "an index": (
        charged(lambda net, t, v, x: v + net.a(x) + x.max(1).indices[:, None]),
        "the model's forward uses a second result, such as an index, that cannot be followed",
    ),
    "the second step": (returning(all_but_the_second), "'out': at step 1 it computes something else; sp.compile takes"),
    "other functions": (
        charged(lambda net, t, v, x: v + (-net.a(x) if loud(x) else net.a(x))),
        "cannot compile Charged: it computes something else for another input; sp.compile takes models that do the",
    ),
    "other numbers": (
        charged(lambda net, t, v, x: v + (0.7 if loud(x) else 0.4) * net.a(x)),
        r"\d+ of \d+ values of its \w+ differ from the model's at step 1; .* do the same for every input",
    ),
    "another beginning": (
        charged(begun_by_another),
        "the model's forward: the value that it begins with at the first time step cannot be told; give the neuron its",
    ),
    "twins": (Twins, "two of its parts look alike and differ in what they keep .*; give them layers of their own"),
    "a part": (returning(lambda net, out: torch.stack(out[1:])), r"this one returns a part of them: let it return"),
    "an early step": (returning(lambda net, out: out[2]), "does not depend on the last time step, so T cannot be told"),
    "two single steps": (returning(lambda net, out: out[-1] + out[0]), "reads single time steps; let it read all or"),
    "some steps": (
        returning(lambda net, out: torch.stack(out[1:]).mean(0)),
        "the model's forward: it reduces over some of the time steps alone; let it reduce over all of them",
    ),
    "one axis": (
        returning(lambda net, out: torch.stack(out, 1).flatten(0, 1)),
        r"does not return time in one axis and the batch in another one; let it return \[T, N, ...\]",
    ),
    "two axes": (
        returning(lambda net, out: torch.stack(out).unflatten(0, (2, -1))), "does not return time in one axis and the"
    ),
    "turned": (
        returning(lambda net, out: net.out(out[-1]).T),
        r"give the shape \[2, 3\] for the example, and the model \[3, 2\]"
    ),
    "turned square": (
        returning(lambda net, out: net.out(out[-1])[:, :2].T),
        r"the output for the example differs from the model's; let the model return \[T, N, ...\]",
    ),
    "zeros": (
        returning(lambda net, out: out[-1].new_zeros(len(out[-1]), 3)),
        "the model's output does not depend on its input, so there is nothing to compile",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BEYOND)
def test_what_no_step_holds_is_refused_by_name(name):
    kind, words = BEYOND[name]
    torch.manual_seed(0)
    with pytest.raises(InvalidValue, match=words) as raised:
        sp.compile(kind(), torch.rand(6, 3, 6))
    assert 20 <= len(str(raised.value)) <= 300


def test_a_forward_of_too_many_numbers_is_refused(monkeypatch):
    monkeypatch.setattr(capture, "MOST", 100)
    with pytest.raises(InvalidValue, match="too many to follow one by one; give an example of smaller images or fewer"):
        sp.compile(Loop(), torch.rand(6, 3, 6))


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
