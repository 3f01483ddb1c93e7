"""`sp.fuse` inside models: same spikes, gradients, keys and hooks; what cannot be fused is named."""

import copy
import gc
import weakref

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn
from torch.testing import assert_close

import spikeprune as sp
from gallery.loops import Rect
from spikeprune.core.errors import InvalidValue
from spikeprune.model.adapter import adapter_for
from spikeprune.model.pairing import pair
from spikeprune.model.trace import trace
from spikeprune.runtime import native
from spikeprune.runtime.fuse import fuse, fuse_report, recording_criticality, unfuse
from spikeprune.runtime.fuse.kernel import fire
from spikeprune.zoo import build


def lif(**more):
    return neuron.LIFNode(surrogate_function=surrogate.ATan(), detach_reset=True, step_mode="m", **more)


def conv(inputs, outputs):
    return layer.Conv2d(inputs, outputs, 3, padding=1, bias=False, step_mode="m")


class Residual(nn.Module):
    """A block whose add stands before the second neuron, and a BatchNorm that two places read."""

    def __init__(self):
        super().__init__()
        self.inside = layer.SeqToANNContainer(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.first = lif()
        self.conv = conv(4, 4)
        self.bn = layer.BatchNorm2d(4, step_mode="m")
        self.second = lif()
        self.shared = layer.BatchNorm2d(4, step_mode="m")
        self.third = neuron.ParametricLIFNode(surrogate_function=surrogate.Sigmoid(), v_reset=None, step_mode="m")

    def forward(self, x):
        a = self.first(self.inside(x))
        b = self.second(self.bn(self.conv(a)) + a)
        c = self.shared(b)
        return self.third(c) + c.sigmoid()


def steps(model, x, number=3):
    """Outputs, gradients and buffers of some training steps, each from the same weights."""
    found = []
    for _ in range(number):
        model.zero_grad()
        functional.reset_net(model)
        out = model(x)
        out.square().sum().backward()
        found.append((out.detach(), {n: p.grad.clone() for n, p in model.named_parameters()}))
    return found, {n: b.clone() for n, b in model.named_buffers()}


def assert_same_training(plain, fused, x, number=3):
    ours, our_buffers = steps(fused, x, number)
    theirs, their_buffers = steps(plain, x, number)
    for (out, grads), (want, want_grads) in zip(ours, theirs, strict=True):
        assert_close(out, want, rtol=1e-9, atol=1e-10)
        assert_close(grads, want_grads, rtol=1e-7, atol=1e-9)
    assert_close(our_buffers, their_buffers, rtol=1e-9, atol=1e-12)


def normed(model):
    return {row.name: row.norm for row in fuse_report(model) if row.norm is not None}


ZOO = [("vgg16-weights", 2, 32), ("resnet19-channels", 2, 8), ("digits-conv", 4, 8), ("mlp", 3, 4)]


@pytest.mark.parametrize(("name", "T", "size"), ZOO)
def test_zoo_networks_train_the_same(name, T, size):
    """Layer by layer: every parameter's gradient in float64, and every running average."""
    torch.manual_seed(0)
    plain = build(name, T=T, size=size).double()
    fused = fuse(copy.deepcopy(plain))
    assert_same_training(plain, fused, torch.rand(2, *plain.image_shape).double(), number=2)
    rows = fuse_report(fused)
    assert all(row.fused and not row.reason for row in rows)
    norms = [n for n, m in fused.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert sorted(n for n in normed(fused).values() if n) == sorted(norms)


def test_without_a_compiler_it_is_the_same(monkeypatch):
    monkeypatch.setattr(native, "library", lambda name: None)
    plain = build("digits-conv", T=3, size=8).double()
    assert_same_training(plain, fuse(copy.deepcopy(plain)), torch.rand(2, 1, 8, 8).double())


def test_a_residual_block():
    torch.manual_seed(0)
    plain = Residual().double()
    fused = fuse(copy.deepcopy(plain))
    assert_same_training(plain, fused, torch.randn(3, 2, 2, 6, 6).double() * 2)
    assert normed(fused) == {"first": "inside.1", "second": "", "third": "shared"}
    reasons = {row.name: row.reason for row in fuse_report(fused) if row.reason}
    assert set(reasons) == {"bn", "shared"}
    assert "read by something else" in reasons["shared"]
    assert "no fused neuron" in reasons["bn"]


POOLED = [("digits-conv", 3, 8, ["body.4"]), ("vgg16-weights", 2, 32, [f"body.{i}" for i in (4, 11, 21, 31, 41)])]


@pytest.mark.parametrize(("name", "T", "size", "pools"), POOLED)
def test_channels_last_also_pools_in_the_kernel(name, T, size, pools):
    torch.manual_seed(0)
    plain = build(name, T=T, size=size).double().to(memory_format=torch.channels_last)
    x = torch.rand(2, *plain.image_shape).double().contiguous(memory_format=torch.channels_last)
    fused = fuse(copy.deepcopy(plain))
    assert_same_training(plain, fused, x, number=2)
    kinds = {n: type(m).__name__ for n, m in fused.named_modules()}
    assert sorted(r.name for r in fuse_report(fused) if kinds[r.name] in ("MaxPool2d", "AvgPool2d")) == sorted(pools)


class Branching(nn.Module):
    """Spikes that a pooling and, where asked, something else reads."""

    def __init__(self):
        super().__init__()
        self.conv, self.lif, self.pool = conv(1, 4), lif(), layer.MaxPool2d(2, 2, step_mode="m")
        self.last = conv(4, 2)
        self.branch = True

    def forward(self, x):
        spikes = self.lif(self.conv(x))
        out = self.last(self.pool(spikes))
        return out.mean((3, 4)) + spikes.mean((3, 4))[:, :, :2] if self.branch else out.mean((3, 4))


@pytest.mark.parametrize("first", [True, False])
def test_spikes_that_are_not_only_pooled(first):
    """Before and after a forward in which the pooling alone has read them."""
    torch.manual_seed(0)
    plain = Branching().double().to(memory_format=torch.channels_last)
    fused = fuse(copy.deepcopy(plain))
    x = torch.rand(3, 2, 1, 6, 6).double() * 3
    for branch in (first, not first, True):
        plain.branch = fused.branch = branch
        assert_same_training(plain, fused, x, number=2)
    assert not [row for row in fuse_report(fused) if row.name == "pool"]


def test_potential_carried_from_call_to_call():
    """Without a reset in between, the second sequence goes on where the first ended, gradient included."""
    plain = build("digits-conv", T=2, size=8).double()
    fused = fuse(copy.deepcopy(plain))
    x = torch.rand(2, 1, 8, 8).double() * 3
    results = []
    for net in (plain, fused):
        out = net(x) + net(x)
        out.square().sum().backward()
        results.append((out.detach(), [p.grad for p in net.parameters()], net.body[0].v.detach()))
    assert_close(results[1], results[0], rtol=1e-7, atol=1e-9)


def test_evaluation_and_frozen_normalisation():
    plain = build("digits-conv", T=3, size=8).double()
    steps(plain, torch.rand(4, 1, 8, 8).double())
    plain.eval()
    functional.reset_net(plain)
    fused = fuse(copy.deepcopy(plain))
    x = torch.rand(3, 1, 8, 8).double()
    assert_same_training(plain, fused, x)
    with torch.no_grad():
        for net in (plain, fused):
            functional.reset_net(net)
        assert torch.equal(plain(x), fused(x))


def test_names_keys_classes_and_back():
    plain = build("resnet19-weights", T=2, size=8)
    fused = copy.deepcopy(plain)
    assert fuse(fused) is fused
    assert fuse(fused) is fused
    assert list(fused.state_dict()) == list(plain.state_dict())
    assert [(n, type(m)) for n, m in fused.named_modules()] == [(n, type(m)) for n, m in plain.named_modules()]
    assert [n for n, _ in fused.named_parameters()] == [n for n, _ in plain.named_parameters()]
    unfuse(fused)
    for module, original in zip(fused.modules(), plain.modules(), strict=True):
        assert vars(module).keys() == vars(original).keys()
    with pytest.raises(InvalidValue, match=r"call sp\.fuse"):
        fuse_report(fused)


def test_a_copy_is_fused_by_itself():
    fused = fuse(build("digits-conv", T=2, size=8))
    fused(torch.rand(2, 1, 8, 8))
    functional.reset_net(fused)
    twin = copy.deepcopy(fused)
    with torch.no_grad():
        for p in twin.parameters():
            p.zero_()
    out = twin(torch.rand(2, 1, 8, 8))
    assert torch.equal(out, torch.zeros_like(out))
    assert normed(twin) == normed(fused) != {}


def test_what_is_refused_is_named():
    class Own(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x.flatten(0, 1)).view_as(x) * 2

    model = nn.Sequential(
        conv(1, 3), layer.BatchNorm2d(3, step_mode="m"),
        neuron.LIFNode(surrogate_function=surrogate.SoftSign(), step_mode="m"),
        conv(3, 3), Own(3), neuron.QIFNode(step_mode="m"),
    ).double()  # fmt: skip
    fused = fuse(copy.deepcopy(model))
    assert_same_training(model, fused, torch.rand(2, 2, 1, 5, 5).double() * 3)
    reasons = {row.name: row.reason for row in fuse_report(fused) if not row.fused}
    assert set(reasons) == {"4", "5"}  # SoftSign, which the kernel does not know, runs through its own derivative
    assert "Own" in reasons["4"]
    assert "QIFNode" in reasons["5"]


def test_hooks_see_tensors_as_before():
    plain = build("digits-conv", T=2, size=8).double()
    fused = fuse(copy.deepcopy(plain))
    x = torch.rand(2, 1, 8, 8).double()
    steps(fused, x)
    seen = {}
    for name, net in (("plain", plain), ("fused", fused)):
        for key, module in net.named_modules():
            if "surrogate" in key:
                continue  # the kernel has its own
            module.register_forward_hook(
                lambda m, args, out, key=(name, key): seen.__setitem__(key, (args[0].detach(), out.detach()))
            )
        functional.reset_net(net)
        net(x)
    assert len(seen) > 10
    for (name, key), value in seen.items():
        if name == "plain":
            assert_close(seen["fused", key], value, rtol=1e-9, atol=1e-11)


def test_the_trace_reads_a_fused_model():
    plain = build("resnet19-weights", T=2, size=8)
    fused = fuse(copy.deepcopy(plain))
    x = torch.rand(2, 3, 8, 8)
    want = pair(trace(plain, x, adapter=adapter_for(plain)))
    for _ in range(2):
        assert pair(trace(fused, x, adapter=adapter_for(fused))) == want
        steps(fused, x, 1)


def test_criticality_of_a_fused_model():
    """Recorded in the kernel, and from the neuron's input as the Probe does it: both as in the unfused model."""
    torch.manual_seed(0)
    plain = build("fashion-conv-large", T=3, size=8).double()
    fused = fuse(copy.deepcopy(plain))
    adapter = adapter_for(plain)
    x = torch.rand(2, 1, 8, 8).double()
    steps(fused, x, 1)
    fused.load_state_dict(plain.state_dict())

    def by_hook(net):
        scores = {}

        def hook(module, args, name):
            slopes = torch.stack([adapter.derivative(module, u) for u in adapter.potentials(module, args)])
            scores[name] = slopes.mean(0).flatten(2).amax(-1).mean(0)

        handles = [
            m.register_forward_pre_hook(lambda m, a, n=n: hook(m, a, n)) for n, m in adapter.neurons(net).items()
        ]
        functional.reset_net(net)
        net(x)
        for handle in handles:
            handle.remove()
        return scores

    want = by_hook(plain)
    assert_close(by_hook(fused), want, rtol=1e-9, atol=1e-11)
    fused.load_state_dict(plain.state_dict())
    functional.reset_net(fused)
    with recording_criticality(fused) as scores:
        fused(x)
    assert list(scores) == list(want)
    assert_close({n: s.double() for n, s in scores.items()}, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("last", [False, True])
def test_nothing_outlives_a_step(monkeypatch, last):
    """Without the cycle collector: what a forward kept goes with its graph."""
    seen = []

    def spy(y, *args):
        seen.append(weakref.ref(y))
        return fire(y, *args)

    monkeypatch.setattr("spikeprune.runtime.fuse.forwards.fire", spy)
    net = fuse(build("fashion-conv", T=2, size=8))
    net.to(memory_format=torch.channels_last if last else torch.contiguous_format)
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            net(torch.rand(2, 1, 8, 8)).sum().backward()
            functional.reset_net(net)
        assert len(seen) >= 6
        assert not [ref for ref in seen if ref() is not None]
    finally:
        gc.enable()


def test_spikes_are_kept_as_bits():
    """What a step saves for backward: the convolutions' outputs, and next to nothing for the spikes."""
    torch.manual_seed(0)
    model = fuse(nn.Sequential(conv(2, 16), layer.BatchNorm2d(16, step_mode="m"), lif(), conv(16, 1)))
    x = torch.randn(4, 8, 2, 16, 16)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t):
        model(x)
    spikes = 4 * 8 * 16 * 256
    assert not [t for t in kept if t.numel() == spikes and set(t.unique().tolist()) <= {0.0, 1.0}]


def test_spikes_written_to_are_not_kept_as_bits():
    class Doubling(nn.Module):
        def forward(self, x):
            return x.mul_(2)

    def make():
        torch.manual_seed(0)
        return nn.Sequential(conv(2, 16), layer.BatchNorm2d(16, step_mode="m"), lif(), Doubling(), conv(16, 1)).double()

    assert_same_training(make(), fuse(make()), torch.randn(4, 4, 2, 16, 16).double())


def test_bfloat16_under_autocast():
    torch.manual_seed(0)
    fused = fuse(build("digits-conv", T=3, size=8))
    for _ in range(2):
        functional.reset_net(fused)
        with torch.autocast("cpu", torch.bfloat16):
            out = fused(torch.rand(4, 1, 8, 8))
        out.float().square().sum().backward()
    assert fused.body[0].v.dtype == torch.bfloat16
    assert all(torch.isfinite(p.grad).all() for p in fused.parameters())


def test_nested_fusing_is_refused():
    model = build("digits-conv", T=2, size=8)
    fuse(model.body)
    with pytest.raises(InvalidValue, match="'body' inside the model is fused already"):
        fuse(model)
    assert "forward" not in vars(model.stem[0])  # what came before it in the model was left alone
    unfuse(model.body)
    fuse(model)


def test_a_model_whose_forward_was_replaced_is_refused_and_left_alone():
    model = build("digits-conv", T=2, size=8)
    model.forward = lambda x: type(model).forward(model, x * 2)
    with pytest.raises(InvalidValue, match=r"forward was replaced by another tool; call sp.fuse before"):
        fuse(model)
    assert [name for name, module in model.named_modules() if "forward" in vars(module)] == [""]


def test_criticality_of_a_model_that_is_not_fused_is_refused():
    with pytest.raises(InvalidValue, match=r"recorded by fused neurons; call sp.fuse"), recording_criticality(lif()):
        pass


class Copies(nn.Module):
    """Looks for what Python asks a value for, between a BatchNorm and its neuron."""

    def forward(self, x):
        assert not hasattr(x, "__no_such_protocol__")
        return copy.copy(x)


def test_a_value_that_is_not_computed_yet_is_copied_as_one():
    plain = nn.Sequential(conv(1, 3), layer.BatchNorm2d(3, step_mode="m"), Copies(), lif()).double()
    fused = fuse(copy.deepcopy(plain))
    x = torch.rand(2, 2, 1, 5, 5).double() * 3
    with torch.no_grad():  # no graph, so the BatchNorm hands out a stand-in
        assert torch.equal(fused(x), plain(x))


def test_a_model_without_neurons_is_refused():
    with pytest.raises(InvalidValue, match="no spiking neuron"):
        fuse(nn.Sequential(nn.Linear(2, 2)))


class Steps(nn.Module):
    """A neuron that is no module, in a loop over time."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        v, out = 0.0, 0.0
        for step in x:
            v = 0.5 * v + self.one(step)
            spike = Rect.apply(v - 0.3)
            v, out = v - spike * 0.3, out + self.two(spike)
        return out


def test_found_neurons_run_as_before_and_the_report_says_so():
    torch.manual_seed(0)
    net, x = Steps(), torch.rand(4, 3, 6)
    wanted = net(x)
    assert torch.equal(sp.fuse(net)(x), wanted)
    assert [(row.fused, "found by their spike functions" in row.reason) for row in fuse_report(net)] == [(False, True)]
    assert torch.equal(sp.unfuse(net)(x), wanted)
    assert "forward" not in vars(net)
    with pytest.raises(InvalidValue, match="no spiking neuron"):
        sp.fuse(nn.Sequential(nn.Linear(6, 8), nn.ReLU()))
