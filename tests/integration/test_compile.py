"""A compiled network gives the spikes of the model it was made from, on every engine and instruction set."""

import itertools
import os
import subprocess
import sys
import threading

import pytest
import torch
from torch import nn

from spikeprune.core.errors import InvalidValue, UserError
from spikeprune.model.adapter import NeuronParams
from spikeprune.runtime import native
from spikeprune.runtime.compile import compile, cost, load

sj = pytest.importorskip("spikingjelly.activation_based")
from spikingjelly.activation_based import functional, layer, neuron  # noqa: E402

from spikeprune.integrations.spikingjelly import SpikingJelly  # noqa: E402

ENGINES = ("lookup", "event", "real", "dense")


def lif(**settings):
    return neuron.LIFNode(**{"tau": 2.0, "v_threshold": 0.25, "step_mode": "m", **settings})


class PerChannel(neuron.LIFNode):
    """A LIF with a threshold of its own for every channel."""

    def __init__(self, channels):
        super().__init__(step_mode="m")
        self.register_buffer("thresholds", torch.linspace(0.1, 0.4, channels).view(-1, 1, 1))

    def forward(self, x):
        v, spikes = torch.zeros_like(x[0]), []
        for current in x:
            v = 0.5 * v + current
            spikes.append((v >= self.thresholds).float())
            v = v * (1 - spikes[-1])
        return torch.stack(spikes)


@pytest.fixture(autouse=True)
def _known(monkeypatch):
    """Lets the adapter describe `PerChannel`, as a user's own adapter would."""
    known = SpikingJelly.describe

    def describe(self, module):
        if isinstance(module, PerChannel):
            return NeuronParams(decay=0.5, gain=1.0, v_threshold=module.thresholds)
        return known(self, module)

    monkeypatch.setattr(SpikingJelly, "describe", describe)


class Net(nn.Module):
    """An image shown T times to a list of layers; an entry ("add", body) is a residual block."""

    def __init__(self, *modules, T=4):
        super().__init__()
        self.T = T
        self.body = nn.Sequential(*modules)
        functional.set_step_mode(self, "m")

    def forward(self, x):
        return self.body(x.unsqueeze(0).expand(self.T, *x.shape))


class Residual(nn.Module):
    def __init__(self, body, shortcut=None, after=None):
        super().__init__()
        self.body, self.shortcut, self.after = body, shortcut or nn.Identity(), after or nn.Identity()

    def forward(self, x):
        return self.after(self.body(x) + self.shortcut(x))


def conv(i, o, k=3, **settings):
    return layer.Conv2d(i, o, k, **{"padding": 1 if k == 3 else 0, "bias": False, **settings})


def bn(channels):
    return layer.BatchNorm2d(channels)


def prepare(model, density=0.3, seed=0):
    """Prunes at random and moves BatchNorm away from the identity, so that folding it wrongly shows."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            keep = torch.rand(module.weight.shape, generator=generator) < density
            module.weight.data = torch.randn(module.weight.shape, generator=generator) * keep
            module.weight.data /= keep.flatten(1).sum(1).clamp(min=1).sqrt().view(-1, *[1] * (keep.dim() - 1))
        if isinstance(module, nn.BatchNorm2d):
            c = module.num_features
            module.running_mean.copy_(torch.randn(c, generator=generator) * 0.1)
            module.running_var.copy_(torch.rand(c, generator=generator) + 0.3)
            module.weight.data = torch.rand(c, generator=generator) + 0.6
            module.bias.data = torch.randn(c, generator=generator) * 0.1 + 0.2
    return model.eval()


def recorded(model, x):
    """The model's spikes by neuron name, and its output."""
    spikes = {}
    hooks = [
        module.register_forward_hook(lambda _, __, y, name=name: spikes.__setitem__(name, y))
        for name, module in model.named_modules()
        if isinstance(module, neuron.BaseNode)
    ]
    functional.reset_net(model)
    with torch.no_grad():
        output = model(x)
    functional.reset_net(model)
    for hook in hooks:
        hook.remove()
    return spikes, output


def assert_same(model, compiled, x):
    spikes, output = recorded(model, x)
    traced = compiled.trace(x)
    assert list(traced) == list(spikes)
    for name, expected in spikes.items():
        assert traced[name].shape == expected.shape
        differ = int((traced[name] != expected).sum())
        assert differ <= max(2, 1e-5 * expected.numel()), name
        if differ:  # a tie, broken by rounding; what follows may differ more
            return
    assert expected.any(), "a silent network shows nothing"
    torch.testing.assert_close(compiled(x), output, rtol=1e-4, atol=1e-5)


def force(monkeypatch, engine):
    """Takes the choice of the engine away from the cost model; what an engine cannot run stays dense."""

    def choose(network, *_):
        kinds = ("conv", "linear")
        return {p: cost.Choice(engine, 1, 1, 1, 1) for p, entry in enumerate(network.layers) if entry.kind in kinds}

    monkeypatch.setattr(cost, "choose", choose)


NETWORKS = {
    "vgg": lambda: Net(
        conv(2, 8), bn(8), lif(), conv(8, 12), bn(12), lif(), layer.AvgPool2d(2), conv(12, 9), bn(9), lif(),
        layer.MaxPool2d(2), conv(9, 8, 1), lif(), layer.AdaptiveAvgPool2d(1), layer.Flatten(), layer.Linear(8, 5),
    ),
    "geometry": lambda: Net(
        conv(2, 6, 5, stride=2), lif(), conv(6, 8, 3, stride=2, padding=2), lif(), conv(8, 8, 3, dilation=2, padding=2),
        lif(), conv(8, 8, (1, 3), padding=(0, 1)), lif(), conv(8, 8, 3, groups=2, bias=True), lif(), layer.Flatten(),
    ),
    "pre-activation": lambda: Net(
        conv(2, 8),
        Residual(nn.Sequential(bn(8), lif(), conv(8, 8), bn(8), lif(), conv(8, 8))),
        Residual(nn.Sequential(bn(8), lif(), conv(8, 12, stride=2), bn(12), lif(), conv(12, 12)),
                 conv(8, 12, 1, stride=2)),
        bn(12), lif(), layer.AdaptiveAvgPool2d(1), layer.Flatten(), layer.Linear(12, 3),
    ),
    "add after the neuron": lambda: Net(
        conv(2, 8), bn(8), lif(),
        Residual(nn.Sequential(conv(8, 8), bn(8), lif(), conv(8, 8), bn(8), lif())),
        conv(8, 6), bn(6), lif(), layer.Flatten(), layer.Linear(6 * 99, 4),
    ),
    "add before the neuron": lambda: Net(
        conv(2, 8), bn(8), lif(),
        Residual(nn.Sequential(conv(8, 8), bn(8), lif(), conv(8, 8), bn(8)), conv(8, 8, 1), lif()),
        conv(8, 6), bn(6), lif(),
    ),
    "neurons": lambda: Net(
        conv(2, 6), neuron.IFNode(v_threshold=0.7), conv(6, 6), neuron.IFNode(v_reset=None), conv(6, 6),
        lif(v_reset=None, decay_input=False), conv(6, 6), neuron.ParametricLIFNode(v_threshold=0.3, v_reset=-0.1),
        conv(6, 6), lif(v_reset=0.2, tau=1.3), conv(6, 6), PerChannel(6), layer.Flatten(), layer.Linear(6 * 99, 3),
    ),
    "mlp": lambda: Net(
        layer.Flatten(), layer.Linear(2 * 99, 20), lif(decay_input=False), layer.Linear(20, 30), lif(),
        layer.Linear(30, 4),
    ),
    "linear on a map": lambda: Net(
        conv(2, 6), lif(), layer.MaxPool2d(3, 2, 1), layer.Flatten(), layer.Linear(6 * 30, 12), lif(),
        layer.Linear(12, 2),
    ),
    "odd pools": lambda: Net(
        conv(2, 6), lif(), layer.AvgPool2d(3, 2, 1), conv(6, 6), lif(), layer.AvgPool2d(4, 3, ceil_mode=True),
        conv(6, 6), lif(), layer.AdaptiveAvgPool2d(2), layer.Flatten(), layer.Linear(24, 3),
    ),
}  # fmt: skip


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", NETWORKS)
def test_spikes_are_the_models(name, engine, monkeypatch):
    force(monkeypatch, engine)
    model = prepare(NETWORKS[name]())
    compiled = compile(model, torch.rand(2, 2, 11, 9))
    for N in (1, 9):  # one image, and a batch of more than one chunk
        assert_same(model, compiled, torch.rand(N, 2, 11, 9, generator=torch.Generator().manual_seed(N)))


@pytest.mark.parametrize("name", ["vgg", "pre-activation", "neurons"])
def test_without_a_compiler_the_result_is_the_same(name, monkeypatch):
    monkeypatch.setattr(native, "library", lambda _: None)
    model = prepare(NETWORKS[name]())
    compiled = compile(model, torch.rand(2, 2, 11, 9))
    assert_same(model, compiled, torch.rand(3, 2, 11, 9))
    assert "no C++ compiler" in str(compiled.plan())


@pytest.mark.parametrize("T", [1, 2, 3, 4, 6, 7, 13])
def test_any_number_of_steps(T, monkeypatch):
    """Words hold up to six steps: 7 and 13 need several blocks, the last one shorter."""
    force(monkeypatch, "lookup")
    model = prepare(NETWORKS["vgg"]())
    model.T = T
    assert_same(model, compile(model, torch.rand(1, 2, 11, 9)), torch.rand(2, 2, 11, 9))


def test_sequences_bring_their_own_length():
    model = prepare(NETWORKS["add before the neuron"]()).body
    compiled = compile(model, torch.rand(3, 2, 2, 11, 9))
    for T, N in ((3, 2), (5, 1), (1, 4)):
        assert_same(model, compiled, torch.rand(T, N, 2, 11, 9))


def test_readout_over_time():
    class Readout(nn.Module):
        def __init__(self, how):
            super().__init__()
            self.net, self.how = NETWORKS["vgg"](), how

        def forward(self, x):
            return getattr(self.net(x), self.how)(0)

    for how in ("mean", "sum"):
        model = prepare(Readout(how))
        compiled = compile(model, torch.rand(2, 2, 11, 9))
        assert_same(model, compiled, torch.rand(3, 2, 11, 9))


def test_gates_and_masks_scale_channels(monkeypatch):
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = Net(conv(2, 8), bn(8), lif(), conv(8, 8), bn(8))
            self.lif, self.register = lif(), None
            self.register_buffer("mask", (torch.arange(8) % 3 > 0).float().view(8, 1, 1))

        def forward(self, x):
            return self.lif(self.net(x) * self.mask)

    force(monkeypatch, "lookup")
    model = prepare(Masked())
    assert_same(model, compile(model, torch.rand(2, 2, 11, 9)), torch.rand(2, 2, 11, 9))


def test_channel_gates_narrow_the_next_layer(monkeypatch):
    from spikeprune.zoo.paper import Gate

    force(monkeypatch, "lookup")
    gate, second = Gate(8), Gate(8)
    model = prepare(
        Net(conv(2, 8), Residual(nn.Sequential(bn(8), gate, lif(), conv(5, 8), bn(8))), bn(8), second, lif())
    )
    gate.select(torch.arange(8) < 5)
    second.select(torch.arange(8) % 2 == 0)
    assert_same(model, compile(model, torch.rand(2, 2, 11, 9)), torch.rand(2, 2, 11, 9))


def test_the_model_is_left_alone():
    model = prepare(NETWORKS["vgg"]()).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    compile(model, torch.rand(2, 2, 11, 9))
    assert model.training
    assert model.body[1].training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("engine", ENGINES)
def test_int16_is_the_rounded_network_on_every_engine(engine, monkeypatch):
    model = prepare(NETWORKS["vgg"](), density=0.5)
    x = torch.rand(4, 2, 11, 9)
    reference = compile(model, x, precision="int16")
    force(monkeypatch, "dense")
    expected = reference.trace(x)
    force(monkeypatch, engine)
    spikes = compile(model, x, precision="int16").trace(x)
    assert all(torch.equal(spikes[name], expected[name]) for name in expected)  # whole numbers: no rounding, no ties
    exact, _ = recorded(model, x)
    changed = sum(int((spikes[name] != exact[name]).sum()) for name in exact) / sum(s.numel() for s in exact.values())
    assert 0 <= changed < 0.02


def test_int16_sums_cannot_overflow():
    model = prepare(NETWORKS["vgg"](), density=0.9)
    network = compile(model, torch.rand(2, 2, 11, 9), precision="int16").network
    rounded = [entry for entry in network.layers if "scale" in entry.tensors and entry.kind in ("conv", "linear")]
    assert len(rounded) >= 3
    averages = {p.output for p in network.layers if p.kind == "pool" and p.options["mode"] == "avg"}
    for entry in rounded:
        weight = entry.tensors["weight"]
        assert torch.equal(weight, weight.round())
        # Every input at its largest: 1 for spikes, 4 quarters behind a 2x2 average.
        units = 4 if entry.inputs[0] in averages else 1
        assert weight.flatten(1).abs().sum(1).max() * units <= 32767


def test_weights_that_16_bits_would_round_away_are_refused():
    """A channel of n equal weights gets (32767 - n / 2) / n steps for each: below a half from n = 32768 on."""
    many = nn.Sequential(layer.Linear(1, 40_000), lif(), layer.Linear(40_000, 2))
    functional.set_step_mode(many, "m")
    nn.init.constant_(many[2].weight, 0.1)
    x = torch.ones(3, 1, 1)
    with pytest.raises(InvalidValue, match="'2' has more weights per channel than 16-bit sums can hold; compile with "):
        compile(many, x, precision="int16")
    many[2].weight.data[:, 30_000:] = 0.0
    assert bool(compile(many, x, precision="int16").network.layers[-1].tensors["weight"].any())


def test_save_and_load(tmp_path):
    model = prepare(NETWORKS["pre-activation"]())
    x = torch.rand(3, 2, 11, 9)
    compiled = compile(model, x)
    path = tmp_path / "net.anything"
    compiled.save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["net.anything"]
    again = load(path)
    assert torch.equal(again(x), compiled(x))
    assert again.precision == "fp32"

    whole = path.read_bytes()
    for place in (0, 5, 30, 60, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(UserError) as error:
            load(path)
        assert 20 <= len(str(error.value)) < 400
    for foreign in (b"", whole[:-1], whole[:40], whole + b"x", b"PK\x03\x04 something else"):
        path.write_bytes(foreign)
        with pytest.raises(UserError):
            load(path)
    with pytest.raises(UserError, match="cannot read"):
        load(tmp_path / "missing")
    with pytest.raises(UserError, match="cannot write"):
        compiled.save(tmp_path / "no" / "folder")


def test_several_models_and_threads_at_once():
    xs = [torch.rand(n, 2, 11, 9) for n in (1, 4, 9)]
    models = [compile(prepare(NETWORKS[name](), seed=i), xs[0]) for i, name in enumerate(("vgg", "pre-activation"))]
    expected = {(i, j): m(x) for (i, m), (j, x) in itertools.product(enumerate(models), enumerate(xs))}
    wrong = []

    def work():
        for (i, j), value in expected.items():
            if not torch.equal(models[i](xs[j]), value):
                wrong.append((i, j))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_more_threads_give_the_same_bits():
    compiled = compile(prepare(NETWORKS["vgg"]()), torch.rand(1, 2, 11, 9))
    before = torch.get_num_threads()
    try:
        for x in (torch.rand(1, 2, 11, 9), torch.rand(9, 2, 11, 9)):
            torch.set_num_threads(1)
            one = compiled.trace(x)
            torch.set_num_threads(3)
            assert all(torch.equal(spikes, one[name]) for name, spikes in compiled.trace(x).items())
    finally:
        torch.set_num_threads(before)


FORKS = """
import os, signal, sys
import torch
from spikeprune.runtime.compile import load

torch.set_num_threads(2)
compiled, x = load(sys.argv[1]), torch.ones(9, 2, 11, 9)
torch.ones(2_000_000).sum()  # wakes PyTorch's threads, which do not come along into the fork
child = os.fork()
if child == 0:
    signal.alarm(30)
    compiled(x)
    torch.ones(2_000_000).sum()  # as one of the network's layers may do, where PyTorch is the fastest engine
    os._exit(0)
sys.exit(os.waitpid(child, 0)[1] != 0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_compiled_network_runs_in_a_fork_of_a_process_with_threads(tmp_path):
    """PyTorch's own operations would wait there for ever."""
    compile(prepare(NETWORKS["vgg"]()), torch.rand(1, 2, 11, 9)).save(tmp_path / "net.snn")
    assert subprocess.run([sys.executable, "-c", FORKS, str(tmp_path / "net.snn")], timeout=120).returncode == 0


def test_plan_names_every_layer():
    compiled = compile(prepare(NETWORKS["vgg"](), density=0.05), torch.rand(2, 2, 11, 9))
    plan = compiled.plan(N=32)
    assert [row.layer for row in plan] == [entry.name for entry in compiled.network.layers]
    assert plan[0].engine == "PyTorch, once per image"
    assert next(row for row in plan if row.layer == "body.3").engine in (
        "lookup",
        "event",
    )  # 5 % kept: no dense can win
    assert "sparsity" in str(plan)


def test_refused_by_name():
    example = torch.rand(2, 2, 11, 9)
    for module, name in (
        (nn.Sigmoid(), "body.2|sigmoid"),
        (layer.GroupNorm(2, 4), "body.2"),
        (neuron.QIFNode(step_mode="m"), "body.2"),
        (nn.PReLU(), "body.2|prelu"),
    ):
        with pytest.raises(InvalidValue, match=name) as error:
            compile(Net(conv(2, 4), lif(), module, lif()), example)
        assert 20 <= len(str(error.value)) <= 300
    with pytest.raises(InvalidValue, match="precision"):
        compile(Net(conv(2, 4), lif()), example, precision="int8")
    compiled = compile(prepare(NETWORKS["vgg"]()), example)
    with pytest.raises(InvalidValue, match="takes"):
        compiled(torch.rand(2, 3, 11, 9))


def test_a_subclass_that_computes_something_else_is_followed_or_refused():
    class Doubled(layer.Conv2d):
        def forward(self, x):
            return 3 * super().forward(x)

    class Shifted(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x.flatten(0, 1)).unflatten(0, x.shape[:2]) + 5

    cases = (Doubled(4, 4, 3, padding=1, step_mode="m"), "body.3.weight"), (Shifted(4), "differ")
    for module, said in cases:
        model = prepare(Net(conv(2, 4), bn(4), lif(), module, lif()))
        with pytest.raises(InvalidValue, match=said):
            compile(model, torch.rand(2, 2, 11, 9))


@pytest.mark.parametrize("scale", [0.0, 1.0, 6.0])
def test_a_quiet_example_is_no_proof(scale):
    """A subclass behind a neuron that the example leaves silent is seen on generated currents."""

    class Scaled(layer.Conv2d):
        def _conv_forward(self, x, weight, bias):
            return super()._conv_forward(x, weight * 3.0, bias)

    torch.manual_seed(0)
    model = nn.Sequential(
        conv(2, 4), neuron.LIFNode(), Scaled(4, 4, 3, padding=1), neuron.LIFNode(), layer.Flatten(), layer.Linear(64, 3)
    )
    functional.set_step_mode(model.eval(), "m")
    x = torch.rand(3, 2, 2, 4, 4, generator=torch.Generator().manual_seed(1)) * 6
    for kind in (Scaled, layer.Conv2d):
        model[2].__class__ = kind
        compiled = compile(model, torch.rand(3, 2, 2, 4, 4) * scale)
        functional.reset_net(model)
        torch.testing.assert_close(compiled(x), model(x).detach(), rtol=1e-4, atol=1e-5)


def test_a_neuron_that_is_not_what_its_adapter_says_is_refused(monkeypatch):
    known = SpikingJelly.describe
    wrong = NeuronParams(decay=0.5, gain=0.5, v_threshold=0.9)
    monkeypatch.setattr(SpikingJelly, "describe", lambda self, module: wrong if module is odd else known(self, module))
    odd = neuron.LIFNode(step_mode="m")
    model = nn.Sequential(conv(2, 4), neuron.LIFNode(), conv(4, 4), odd)
    functional.set_step_mode(model.eval(), "m")
    with pytest.raises(InvalidValue, match="neuron '3'"):
        compile(model, torch.zeros(3, 2, 2, 4, 4))


def test_what_follows_the_last_neuron_is_compared_too():
    class Doubled(layer.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    model = nn.Sequential(layer.Flatten(), layer.Linear(32, 5), neuron.LIFNode(), Doubled(5, 3, bias=False))
    functional.set_step_mode(model.eval(), "m")
    compiled = compile(model, torch.zeros(3, 2, 2, 4, 4))
    x = torch.rand(3, 2, 2, 4, 4) * 6
    wanted = model(x).detach()
    assert wanted.abs().max() > 0.1
    torch.testing.assert_close(compiled(x), wanted, rtol=1e-4, atol=1e-5)
