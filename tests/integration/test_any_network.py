"""Networks that nobody here wrote: idioms of public code in which neurons, weights and axes must be found."""

import pytest
import snntorch as snn
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import layer, neuron
from torch import nn

import spikeprune as sp
from gallery.loops import Rect
from spikeprune.core.errors import InvalidValue
from spikeprune.integrations import register_adapter
from spikeprune.model import adapter as adapters
from spikeprune.model.adapter import Adapter, surrogate_derivative
from spikeprune.model.pairing import pair
from spikeprune.model.trace import trace


def regrown(net, x, share=0.3, sparsity=0.6, **settings):
    """Weight -> how many weights one cut by criticality brings back."""
    pruner = sp.Pruner(net, sp.Criticality(regrow=sp.Constant(share), **settings), sp.OneShot(sparsity))
    pruner.observe([x])
    pruner.cut()
    return pruner, {name: one["regrown"] for name, one in pruner.rounds[0]["layers"].items()}


def fed(net, x):
    """Weight -> neuron in one traced forward."""
    return {name: pairing.neuron for name, pairing in pair(trace(net, x)).items()}


class Loop(nn.Module):
    """The membrane is a local variable in a loop over x[:, t]; the spike function stands in the forward."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.c, self.out = nn.Linear(6 * 16, 12), nn.Linear(12, 5)

    def forward(self, x):
        m1 = m2 = torch.zeros(x.shape[0], 6, 4, 4)
        m3, out = torch.zeros(x.shape[0], 12), torch.zeros(x.shape[0], 5, x.shape[1])
        for t in range(x.shape[1]):
            m1 = m1 * 0.5 + self.a(x[:, t])
            s1 = Rect.apply(m1 - 1)
            m2 = m2 * 0.5 * (1 - s1) + self.b(s1)
            s2 = Rect.apply(m2 - 1)
            m3 = m3 * 0.5 + self.c(s2.flatten(1))
            s3 = Rect.apply(m3 - 1)
            m1, m2, m3 = m1 * (1 - s1), m2 * (1 - s2), m3 * (1 - s3)
            out[..., t] = self.out(s3)
        return out.mean(-1)


def test_spike_functions_are_found_in_a_loop_over_time():
    assert fed(Loop(), torch.rand(4, 3, 2, 4, 4)) == {
        "a.weight": "Rect of a",
        "b.weight": "Rect of b",
        "c.weight": "Rect of c",
        "out.weight": None,
    }


class Fires(nn.Module):
    """The same neuron as a module, which a hand-written adapter can know."""

    def __init__(self):
        super().__init__()
        self.v = None

    def forward(self, x):
        v = x if self.v is None else self.v * 0.5 + x
        spike = Rect.apply(v - 1)
        self.v = v * (1 - spike)
        return spike


class Known(Adapter):
    """The hand-written adapter of `Fires`."""

    name = "by hand"

    def is_neuron(self, module):
        return isinstance(module, Fires)

    def reset(self, model):
        for module in model.modules():
            if isinstance(module, Fires):
                module.v = None

    def begins(self, neuron, args):
        return neuron.v is None

    def potentials(self, neuron, args):
        yield (args[0] if neuron.v is None else neuron.v * 0.5 + args[0]) - 1

    def surrogate(self, neuron):
        return Rect.apply

    def smooth(self, neuron, u):
        raise InvalidValue("no curve")

    def describe(self, neuron):
        return None

    def multi_step(self, module):
        return False

    def states(self, model):
        return [(m, m.v) for m in model.modules() if isinstance(m, Fires)]

    def restore(self, model, states):
        for module, v in states:
            module.v = v


class Modules(nn.Module):
    """Time is outside of the layers; each forward starts anew."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.a, self.n1 = nn.Conv2d(2, 6, 3, padding=1), Fires()
        self.b, self.n2 = nn.Conv2d(6, 8, 3, padding=1, stride=2), Fires()
        self.out = nn.Linear(8, 5)
        with torch.no_grad():
            self.b.weight.mul_(4)  # so that the second layer comes near its threshold as well

    def forward(self, x):
        self.n1.v = self.n2.v = None
        return sum(self.out(self.n2(self.b(self.n1(self.a(step)))).mean((2, 3))) for step in x)


@pytest.mark.parametrize("unit", ["neuron", "synapse"])
def test_found_criticality_equals_that_of_a_hand_written_adapter(unit, monkeypatch):
    x = torch.rand(3, 4, 2, 6, 6, generator=torch.Generator().manual_seed(1)) * 3

    def recorded():
        pruner = sp.Pruner(Modules(), sp.Criticality(regrow=sp.Constant(0.3), unit=unit), sp.OneShot(0.6))
        pruner.observe([x])
        return pruner._observer.statistics(lambda value: value)

    found = recorded()
    monkeypatch.setattr(adapters, "_registered", [])
    register_adapter(Known())
    known = recorded()
    assert set(found) == set(known) == {"a.weight", "b.weight"}
    for name in known:
        assert float(known[name].max()) > 0
        torch.testing.assert_close(found[name], known[name], rtol=0, atol=0)


class Straight(nn.Module):
    """(s - g).detach() + g, with the threshold as a parameter."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.out = nn.Linear(10, 12), nn.Linear(12, 14), nn.Linear(14, 5)
        self.threshold = nn.Parameter(torch.tensor(1.0))

    def fire(self, v):
        g = torch.sigmoid(4 * (v - self.threshold))
        return ((v >= self.threshold).float() - g).detach() + g

    def forward(self, x):
        v1 = v2 = out = 0
        for step in x:
            v1 = v1 * 0.5 + self.a(step)
            s1 = self.fire(v1)
            v1 = v1 - s1
            v2 = v2 * 0.5 + self.b(s1)
            s2 = self.fire(v2)
            v2 = v2 - s2 * self.threshold
            out = out + self.out(s2)
        return out


def test_straight_through_spikes_are_found_with_their_gradient():
    net, x = Straight(), torch.rand(3, 4, 10) * 3
    assert fed(net, x) == {
        "a.weight": "straight-through of a",
        "b.weight": "straight-through of b",
        "out.weight": None,
    }
    pruner = sp.Pruner(net, sp.Criticality(regrow=sp.Constant(0.3)), sp.OneShot(0.6))
    pruner.observe([x])
    with torch.no_grad():
        v, total = torch.zeros(4, 12), torch.zeros(4, 12)
        for step in x:  # by hand: the sigmoid's derivative at v - 1, mean over time and samples
            v = v * 0.5 + net.a(step)
            g = torch.sigmoid(4 * (v - 1))
            total += 4 * g * (1 - g)
            v = v - (v >= 1).float()
    torch.testing.assert_close(pruner._observer.statistics(lambda value: value)["a.weight"], total.mean(0) / 3)


class Recurrent(nn.Module):
    """Recurrent weights without self-connections, left out at the first step."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.W, self.V, self.out = nn.Linear(10, 12), nn.Linear(12, 12, bias=False), nn.Linear(12, 5)

    def forward(self, x):
        V = self.V.weight.clone().fill_diagonal_(0)
        v, spike, out = 0, None, 0
        for step in x:
            current = self.W(step) if spike is None else self.W(step) + torch.matmul(spike, V)
            v = v * 0.5 + current
            spike = Rect.apply(v - 1)
            v = v - spike
            out = out + self.out(spike)
        return out


@pytest.mark.parametrize("unit", ["neuron", "synapse"])
def test_recurrent_weights_feed_the_neuron_of_their_layer(unit):
    net, x = Recurrent(), torch.rand(3, 4, 10) * 3
    assert fed(net, x) == {"W.weight": "Rect of V, W", "V.weight": "Rect of V, W", "out.weight": None}
    _, counts = regrown(net, x, unit=unit)
    assert counts["V.weight"] > 0


class InnerRecurrent(nn.Module):
    """snnTorch's recurrent neuron: the recurrent weights are inside of it, and state is handed over or hidden."""

    def __init__(self, hidden):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.out, self.hidden = nn.Linear(10, 8), nn.Linear(8, 5), hidden
        self.n = snn.RLeaky(beta=0.8, linear_features=8, init_hidden=hidden)

    def forward(self, x):
        state, out = self.n.reset_mem(), 0
        for step in x:
            if self.hidden:
                spikes = self.n(self.a(step))
            else:
                spikes, memory = self.n(self.a(step), *state)
                state = spikes, memory
            out = out + self.out(spikes)
        return out


@pytest.mark.parametrize("hidden", [True, False])
def test_recurrent_synapses_inside_a_neuron_are_watched(hidden):
    """A synapse's criticality: surrogate'(u[t]) times its input, the spikes of the step before."""
    net, x = InnerRecurrent(hidden), torch.rand(4, 3, 10, generator=torch.Generator().manual_seed(1)) * 4
    u, spikes, memory = [], torch.zeros(3, 8), torch.zeros(3, 8)
    read = [spikes]
    with torch.no_grad():
        for step in x:
            reset = (memory > 1).float()
            memory = 0.8 * memory + net.a(step) + net.n.recurrent(spikes) - reset
            u.append(memory - 1)
            spikes = (memory > 1).float()
            read.append(spikes)
    derivative = [1 / (1 + (torch.pi * value).square()) for value in u]
    wanted = sum(d.T @ s for d, s in zip(derivative, read, strict=False))
    assert wanted.count_nonzero() > 20
    pruner = sp.Pruner(net, sp.Criticality(unit="synapse", surrogate="atan", regrow=0.2), sp.OneShot(0.5))
    pruner.observe([x])
    found = pruner._observer.statistics(lambda tensor: tensor)["n.recurrent.weight"]
    torch.testing.assert_close(found / found.max(), wanted / wanted.max())


def test_scores_of_a_matrix_multiplied_from_the_right_run_along_its_columns():
    net = Recurrent()
    with torch.no_grad():
        net.W.weight.zero_()
        net.W.bias.fill_(-50.0)
        net.W.bias[7] = 0.9  # only neuron 7 is near its threshold
    pruner = sp.Pruner(net, sp.Criticality(regrow=sp.Constant(0.05)), sp.OneShot(0.5), include="V")
    pruner.observe([torch.rand(3, 4, 10)])
    pruner.cut()
    by_column = pruner.regrown_alive["V.weight"].sum(0)
    assert by_column[7] > 0
    assert by_column.sum() == by_column[7]


def test_a_silent_wrong_function_is_no_spike_function():
    class Identity(torch.autograd.Function):
        @staticmethod
        def forward(ctx, u):
            return u.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.b(Identity.apply(self.a(x) * 0))  # only zeros pass, as of a silent neuron

    net = Net()
    assert set(fed(net, torch.rand(2, 4)).values()) == {None}
    with pytest.raises(InvalidValue, match="no spiking neuron was found"):
        sp.prune(net, "criticality", 0.5, data=[torch.rand(2, 4)])


def test_found_neurons_are_recorded_in_training_from_the_first_forward_on():
    x, y = torch.rand(4, 3, 2, 4, 4) * 3, torch.tensor([0, 1, 2, 3])

    def trained(first_seen):
        torch.manual_seed(0)
        net = Loop()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        pruner = sp.Pruner(net, sp.Criticality(regrow=sp.Constant(0.3)), sp.Constant(0.6, begin=1, end=3, every=1))
        if first_seen:
            pruner.trace(x)
        pruner.attach(optimizer)
        for _ in range(4):
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
        pruner.finish()
        return pruner

    one, two = trained(False), trained(True)
    assert [dict(r) for r in one.rounds] == [dict(r) for r in two.rounds]
    assert len(one.rounds) == 2
    assert all(torch.equal(one.masks[n], two.masks[n]) for n in one.masks)


def test_nothing_of_the_spike_function_stays_changed():
    before = Rect.__dict__["forward"]
    regrown(Loop(), torch.rand(4, 3, 2, 4, 4))
    assert Rect.__dict__["forward"] is before


class Functional(nn.Module):
    """A convolution that is called by function on a module's weight."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.n1 = nn.Conv2d(2, 8, 3, padding=1), neuron.LIFNode()
        self.b, self.n2 = nn.Conv2d(8, 8, 3, padding=1), neuron.LIFNode()
        self.out = nn.Linear(8, 10)

    def forward(self, x):
        x = self.n1(self.a(x))
        return self.out(self.n2(F.conv2d(x, self.b.weight, self.b.bias, padding=1)).mean((2, 3)))


class Plain(Functional):
    """The same through the module."""

    def forward(self, x):
        return self.out(self.n2(self.b(self.n1(self.a(x)))).mean((2, 3)))


@pytest.mark.parametrize("unit", ["neuron", "synapse"])
def test_a_weight_used_by_function_is_pruned_as_through_its_module(unit):
    x = torch.rand(4, 2, 8, 8) * 4
    one, two = (regrown(net, x, unit=unit)[0].masks for net in (Functional(), Plain()))
    assert all(torch.equal(one[name], two[name]) for name in two)
    assert regrown(Functional(), x, unit=unit)[1]["b.weight"] > 0


class Upsampled(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        torch.manual_seed(0)
        self.c, self.n1 = nn.Conv2d(2, 8, 3, padding=1), neuron.IFNode()
        self.t, self.n2 = nn.ConvTranspose2d(8, outputs, 2, 2), neuron.IFNode()
        with torch.no_grad():
            self.t.bias.fill_(-50.0)
            self.t.bias[3] = 0.9  # only output channel 3 is near its threshold of 1

    def forward(self, x):
        return self.n2(self.t(self.n1(self.c(x))))


@pytest.mark.parametrize("outputs", [4, 8])
def test_a_transposed_convolution_regrows_along_its_output_channels(outputs):
    pruner = sp.Pruner(Upsampled(outputs), sp.Criticality(regrow=sp.Constant(0.2)), sp.OneShot(0.5), include="t")
    pruner.observe([torch.rand(4, 2, 8, 8) * 4])
    pruner.cut()
    by_output = pruner.regrown_alive["t.weight"].sum((0, 2, 3))
    assert by_output[3] > 0
    assert by_output.sum() == by_output[3]


def normed_net():
    def normed(inputs, outputs):
        return nn.utils.parametrizations.weight_norm(nn.Linear(inputs, outputs))

    torch.manual_seed(0)
    return nn.Sequential(normed(40, 24), neuron.LIFNode(), normed(24, 24), neuron.LIFNode(), nn.Linear(24, 10))


@pytest.mark.parametrize("method", ["magnitude", "criticality", "rigl"])
def test_weight_norm_is_pruned_on_its_originals_and_no_row_dies(method):
    net, x, y = normed_net(), torch.rand(6, 40) * 4, torch.arange(6)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    pruner = sp.Pruner(net, method, sp.Cubic(to=0.85, begin=0, end=4, every=1)).attach(optimizer)
    for _ in range(8):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
        reset_net(net)
    pruner.finish()
    assert pruner.prunable == 960 + 576 + 240
    assert pruner.alive == int(1776 * 0.15)
    for name, mask in pruner.masks.items():
        layer = net[int(name[0])]
        assert bool((layer.weight != 0)[~mask].sum() == 0)  # dead originals are dead in the weight that acts
        assert bool(layer.weight.isfinite().all())
        assert mask.any(1).all() or name == "4.weight"
    fresh = normed_net()
    fresh.load_state_dict(net.state_dict())
    assert torch.equal(fresh(x), net(x))


def reset_net(net):
    for module in net.modules():
        if isinstance(module, neuron.LIFNode):
            module.reset()


def test_a_row_of_weight_norm_that_cannot_live_is_refused():
    with pytest.raises(InvalidValue, match=r"each row of '0\.parametrizations.*must keep a weight"):
        sp.prune(normed_net(), "magnitude", 0.99)
    with pytest.raises(InvalidValue, match=r"weight_norm.*stds may empty a row"):
        sp.Pruner(normed_net(), "stds", sp.Cubic(to=0.5, begin=0, end=4, every=1))
    with pytest.raises(InvalidValue, match=r"squeeze cannot solve them; call .*remove_parametrizations"):
        sp.squeeze(normed_net(), [torch.rand(4, 40)], 0.5)


def test_a_weight_that_is_computed_is_refused_by_name():
    with pytest.raises(InvalidValue, match="WSConv2d"):
        sp.Pruner(nn.Sequential(layer.WSConv2d(2, 4, 3), nn.Linear(4, 2)), "magnitude", sp.OneShot(0.5))


class Computes(nn.Module):
    """Computes the weight of `conv` in its own forward."""

    def __init__(self, how):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.n, self.out, self.how = nn.Conv2d(3, 6, 3), neuron.LIFNode(), nn.Linear(6, 4), how
        self.other = nn.Parameter(torch.rand(6, 3, 1, 1))

    def forward(self, x):
        weight = self.how(self, self.conv.weight)
        return self.out(self.n(F.conv2d(x, weight, self.conv.bias)).mean((2, 3)))


class Ternary(torch.autograd.Function):
    @staticmethod
    def forward(ctx, w):
        return w.sign() * (w.abs() > 0.05)

    @staticmethod
    def backward(ctx, grad):
        return grad


class Shifted(Ternary):
    @staticmethod
    def forward(ctx, w):
        return (w + 0.1 * w.mean()).sign()


def standardised(net, w):
    w = w - w.mean((1, 2, 3), keepdim=True)
    return w / w.std((1, 2, 3), keepdim=True).clamp_min(1e-5)


def in_place(net, w):
    copy = w.clone()
    copy.sub_(copy.mean())
    return copy.view(6, 3, 3, 3)


SPOILT = {
    "standardised": standardised,
    "in place": in_place,
    "norm of rows": lambda net, w: w / w.flatten(1).norm(dim=1).view(-1, 1, 1, 1),
    "DoReFa": lambda net, w: torch.tanh(w) / w.tanh().abs().max() / 2 + 0.5,
    "function": lambda net, w: Shifted.apply(w),
    "sigmoid": lambda net, w: torch.sigmoid(w) - 0.3,
    "gated sigmoid": lambda net, w: torch.sigmoid(w) * net.other,
    "softplus added": lambda net, w: F.softplus(w) + net.other,
}
KEPT = {
    "stored": lambda net, w: w,
    "masked": lambda net, w: w * (net.other > 0.5),
    "quantised": lambda net, w: w + ((w * 7).round() / 7 - w).detach(),
    "re-parametrised": lambda net, w: w + F.pad(net.other, (1, 1, 1, 1)),
    "padded": lambda net, w: F.pad(w, (1, 1, 1, 1)),
    "function": lambda net, w: Ternary.apply(w),
    "bounded, added": lambda net, w: torch.tanh(w) + net.other,
    "gated sum": lambda net, w: (w + net.other) * net.other.sum(1, keepdim=True),
    "constant border": lambda net, w: F.pad(w[..., :2], (0, 1), value=0.5),
}


def train_once(net, pruner, x):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    pruner.attach(optimizer)
    for _ in range(2):
        optimizer.zero_grad()
        net(x).sum().backward()
        optimizer.step()
        reset_net(net)
    pruner.finish()


@pytest.mark.parametrize("how", list(SPOILT))
def test_a_weight_computed_in_the_forward_is_refused_where_its_zeros_act(how):
    x = torch.rand(4, 3, 6, 6)
    for method in ("magnitude", "criticality", "snip"):
        net = Computes(SPOILT[how])
        with pytest.raises(InvalidValue, match=r"'conv.weight': the forward computes another weight"):
            train_once(net, sp.Pruner(net, method, sp.Cubic(to=0.5, begin=0, end=4, every=2)), x)
        net = Computes(SPOILT[how])
        train_once(net, sp.Pruner(net, "magnitude", sp.OneShot(0.5), exclude="conv"), x)
    with pytest.raises(InvalidValue, match=r"'conv.weight': the forward computes"):
        sp.prune(Computes(SPOILT[how]), "magnitude", 0.5, data=[x])
    with pytest.raises(InvalidValue, match=r"'conv.weight': the forward computes"):
        sp.squeeze(Computes(SPOILT[how]), [x], 0.5)


@pytest.mark.parametrize("how", list(KEPT))
def test_a_weight_computed_in_the_forward_is_pruned_where_its_zeros_stay(how):
    x = torch.rand(4, 3, 6, 6)
    for method in ("magnitude", "criticality"):
        net = Computes(KEPT[how])
        pruner = sp.Pruner(net, method, sp.Cubic(to=0.5, begin=0, end=2, every=1))
        train_once(net, pruner, x)
        assert pruner.sparsity == 0.5
        assert not net.conv._forward_pre_hooks
        assert not net._forward_hooks


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def test_a_parametrisation_that_keeps_zeros_is_pruned_on_its_original():
    net = nn.Sequential(nn.Linear(40, 24), neuron.LIFNode(), nn.Linear(24, 10))
    nn.utils.parametrize.register_parametrization(net[0], "weight", Doubled())
    masks = sp.prune(net, "magnitude", 0.5)
    assert masks["0.parametrizations.weight.original"].numel() == 960
    assert torch.equal(net[0].weight != 0, masks["0.parametrizations.weight.original"])


def test_writes_into_a_preallocated_tensor_do_not_end_the_trace():
    norse = pytest.importorskip("norse.torch.models.conv")
    masks = sp.prune(norse.ConvNet4(), "criticality", 0.5, data=[torch.rand(2, 2, 1, 28, 28) * 10])
    assert len(masks) > 2


def test_a_leaky_integrator_is_no_neuron():
    norse = pytest.importorskip("norse.torch")

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            cells = norse.LIFCell(), norse.LICell()
            self.m = norse.SequentialState(nn.Linear(40, 24), cells[0], nn.Linear(24, 10), cells[1])

        def forward(self, x):
            state = None
            for step in x:
                z, state = self.m(step, state)
            return z

    masks = sp.prune(Net(), "criticality", 0.5, data=[torch.rand(3, 4, 40)])
    assert set(masks) == {"m.0.weight", "m.2.weight"}


def test_two_kinds_of_neurons_are_paired_each_by_its_own_adapter():
    snntorch = pytest.importorskip("snntorch")

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.a, self.n1 = nn.Linear(10, 12), neuron.LIFNode()
            self.b, self.n2 = nn.Linear(12, 12), snntorch.Leaky(beta=0.5, init_hidden=True)
            self.c, self.out = nn.Linear(12, 12), nn.Linear(12, 5)
            for linear in (self.a, self.b, self.c):
                nn.init.uniform_(linear.weight, 0, 0.3)
                nn.init.uniform_(linear.bias, -0.5, 1)

        def forward(self, x):
            v, out = 0, 0
            for step in x:
                v = v * 0.5 + self.c(self.n2(self.b(self.n1(self.a(step)))))
                spike = Rect.apply(v - 1)
                v = v - spike
                out = out + self.out(spike)
            return out

    net, x = Net(), torch.rand(3, 4, 10) * 3
    assert fed_by_adapter(net, x) == {"a.weight": "n1", "b.weight": "n2", "c.weight": "Rect of c", "out.weight": None}
    pruner = sp.Pruner(net, sp.Criticality(regrow=sp.Constant(0.3)), sp.OneShot(0.6))
    pruner.observe([x])
    scores = pruner._observer.statistics(lambda value: value)
    assert {name for name, score in scores.items() if float(score.max()) > 0} == {"a.weight", "b.weight", "c.weight"}
    assert net.n1.v == 0.0  # observing left the neurons as they were
    assert set(sp.count(net, [x]).firing_rates) >= {"n1", "n2"}


def fed_by_adapter(net, x):
    graph = trace(net, x, adapter=adapters.find_adapter(net))
    return {name: pairing.neuron for name, pairing in pair(graph).items()}


def test_derivative_of_a_found_neuron_is_the_functions_own():
    u = torch.linspace(-1, 1, 9)
    assert torch.equal(surrogate_derivative(Rect.apply, u), (u.abs() < 0.5).float())


class Unknown(nn.Module):
    """A neuron of which nothing is known: it has no surrogate."""

    def forward(self, x):
        return (x.cumsum(0) > 1).float()


class TimeFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.n, self.b = nn.Linear(40, 24), Unknown(), nn.Linear(24, 10)

    def forward(self, x):
        return self.b(self.n(self.a(x)))


def test_counts_are_per_sample_where_only_the_targets_tell_the_axes_apart():
    x, y = torch.ones(5, 20, 40), torch.zeros(20, dtype=torch.long)
    net = TimeFirst()
    counts = sp.count(net, [(x, y)])
    assert counts.samples == 20
    assert counts.dense.macs == 5 * (40 * 24 + 24 * 10)
    assert sp.count(net, [x], time="first").dense == counts.dense
    with pytest.raises(InvalidValue, match="batch size cannot be told"):
        sp.count(net, [x])


def test_a_model_of_one_step_is_counted_with_the_loop_outside():
    class Step(Modules):
        def forward(self, x):
            return self.out(self.n2(self.b(self.n1(self.a(x)))).mean((2, 3)))

    x = torch.rand(3, 4, 2, 6, 6, generator=torch.Generator().manual_seed(1)) * 3
    outside, inside = Step(), Modules()
    assert sp.count(outside, [x], time="outside") == sp.count(inside, [x], time="first")


def test_weights_used_by_functions_are_counted_as_through_their_modules():
    x = torch.rand(4, 2, 8, 8) * 4
    masks = sp.prune(Plain(), "magnitude", 0.6)
    functional, plain = sp.count(Functional(), [x], masks), sp.count(Plain(), [x], masks)
    assert (functional.dense, functional.pruned) == (plain.dense, plain.pruned)
    for name, sides in plain.layers.items():
        assert (functional.layers[name].dense, functional.layers[name].pruned) == (sides.dense, sides.pruned)
    assert sp.count(Plain(), [x], masks).layers["b"].dense.acs > 0


def test_recurrent_weights_are_counted_as_by_brute_force():
    net, x = Recurrent(), torch.rand(3, 4, 10) * 3
    spikes, v, total = None, torch.zeros(4, 12), 0
    with torch.no_grad():
        for step in x:
            if spikes is not None:
                total += int(spikes.sum()) * 12
            V = net.V.weight.clone().fill_diagonal_(0)
            v = v * 0.5 + net.W(step) + (0 if spikes is None else spikes @ V)
            spikes = (v > 1).float()
            v = v - spikes
    found = sp.count(net, [x], time="first")
    assert total > 0
    assert found.layers["V"].dense.acs == total / 4
    assert found.layers["V"].dense.macs == 2 * 144


def test_products_of_activations_stand_beside_the_totals():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k = nn.Linear(6, 8), nn.Linear(6, 8)

        def forward(self, x):
            return (self.q(x) @ self.k(x).transpose(-2, -1)).mean(-1)

    counts = sp.count(Attention(), [torch.rand(2, 5, 6)])
    assert counts.products == 5 * 5 * 8
    assert counts.dense.macs == 2 * 5 * 6 * 8


PARALLEL = {
    "PSN": lambda: neuron.PSN(T=3),
    "MaskedPSN": lambda: neuron.MaskedPSN(k=2, T=3, step_mode="m"),
    "SlidingPSN": lambda: neuron.SlidingPSN(k=2, step_mode="m"),
    "GatedLIF": lambda: neuron.GatedLIFNode(T=3),
}


@pytest.mark.parametrize("make", PARALLEL.values(), ids=PARALLEL.keys())
def test_parallel_neurons_are_pruned_by_what_their_surrogate_sees(make):
    net = nn.Sequential(layer.Conv2d(2, 8, 3, padding=1, step_mode="m"), make(), layer.Flatten(step_mode="m"))
    net.append(layer.Linear(512, 10, step_mode="m"))
    x = torch.rand(3, 4, 2, 8, 8)
    masks = sp.prune(net, sp.Criticality(regrow=sp.Constant(0.3)), 0.5, data=[x])
    assert set(masks) == {"0.weight", "3.weight"}


def test_the_potential_of_a_parallel_neuron_is_its_own():
    psn = neuron.PSN(T=3)
    x = torch.rand(3, 4, 5)
    u = torch.stack(list(adapters.find_adapter(psn).potentials(psn, (x,))))
    torch.testing.assert_close(u, torch.addmm(psn.bias, psn.weight, x.flatten(1)).view(x.shape).detach())


def test_a_function_that_runs_over_time_by_itself_is_refused_by_name():
    net = nn.Sequential(layer.Conv2d(2, 8, 3, padding=1, step_mode="m"), neuron.DSRIFNode(T=3))
    net.extend([layer.Flatten(step_mode="m"), layer.Linear(512, 10, step_mode="m")])
    with pytest.raises(InvalidValue, match="no spiking neuron was found"):
        sp.prune(net, "criticality", 0.5, data=[torch.rand(3, 4, 2, 8, 8)])


@pytest.mark.parametrize("method", ["magnitude", "criticality", "random"])
def test_weights_may_lie_in_any_order_in_memory(method):
    def made():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), neuron.LIFNode(), nn.Conv2d(8, 8, 3), neuron.LIFNode())
        return net.extend([nn.Flatten(), nn.Linear(288, 10)])

    x = [torch.rand(4, 2, 8, 8) * 3]
    plain, moved = made(), made().to(memory_format=torch.channels_last)
    moved[5].weight.data = moved[5].weight.data.t().contiguous().t()
    one, two = (sp.prune(net, method, 0.5, data=x) for net in (plain, moved))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_framework_whose_version_has_no_adapter_stands_in_nobodys_way(monkeypatch):
    monkeypatch.setattr(adapters, "_BUILT_IN", {"torch": "spikeprune.integrations.missing:Missing"})
    x = torch.rand(3, 4, 2, 6, 6) * 3
    assert sp.count(Modules(), [x], time="first").samples == 4
    assert sp.prune(Modules(), "magnitude", 0.5)
    assert sp.prune(Modules(), "criticality", 0.5, data=[x])


def test_a_budget_prices_a_transposed_convolution_by_its_input_positions():
    net = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), neuron.IFNode(), nn.ConvTranspose2d(4, 3, 2, 2))
    from spikeprune.count.costs import network_cost, weight_costs

    graph = trace(net, torch.rand(1, 2, 6, 6), adapter=adapters.find_adapter(net))
    cost, fixed = weight_costs("macs", net, {"2.weight": net[2].weight}, graph, {})
    assert cost == {"2.weight": 36.0}
    assert fixed == 36 * net[0].weight.numel()
    whole = 36.0 * (net[0].weight.numel() + net[2].weight.numel())
    assert network_cost("macs", [], net, graph)({}) == whole
    rates = {"0.weight": torch.ones(2), "2.weight": torch.tensor([1.0, 0.5, 0.5, 0.0])}  # of its four inputs
    assert network_cost("synops", [], net, graph, rates)({}) == whole - 36 * 2 * 3 * 4


class StepsOfWhole(nn.Module):
    """The layer sees [N, T, ...] at once, the neuron one step of it after the other."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.out = nn.Linear(10, 12), nn.Linear(12, 5)

    def forward(self, x):
        current, v, out = self.a(x), 0, 0
        for t in range(x.shape[1]):
            v = 0.5 * v + current[:, t]
            spike = Rect.apply(v - 1)
            v = v - spike
            out = out + self.out(spike)
        return out


def test_synapse_scores_of_samples_first_equal_those_of_a_layer_in_the_loop():
    class Looped(StepsOfWhole):
        def forward(self, x):
            v, out = 0, 0
            for t in range(x.shape[1]):
                v = 0.5 * v + self.a(x[:, t])
                spike = Rect.apply(v - 1)
                v = v - spike
                out = out + self.out(spike)
            return out

    x = torch.rand(5, 3, 10) * 3
    one, two = (regrown(net, x, unit="synapse")[0] for net in (StepsOfWhole(), Looped()))
    assert all(torch.equal(one.masks[name], mask) for name, mask in two.masks.items())
    with pytest.raises(InvalidValue, match="3 time steps cannot be told from 3 samples"):
        regrown(StepsOfWhole(), x[:3], unit="synapse")
