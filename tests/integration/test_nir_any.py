"""NIR graphs of loops, snnTorch and Norse: run by their own equations; one is read back by two frameworks."""

import pytest
import torch
from torch import nn

import spikeprune as sp
from fuzz_draw import Hidden
from gallery.loops import Rect
from gallery.nets import ENTRIES
from gallery.run import answer
from spikeprune.core.errors import InvalidValue
from spikeprune.runtime import nir_linear

nir = pytest.importorskip("nir")
norse = pytest.importorskip("norse.torch")
snn = pytest.importorskip("snntorch")

from nir_run import Simulator  # noqa: E402

# Name -> how the reader of the file reduces the output over time; a factor 1 / T behind a sum is in the file.
NETWORKS = {
    "inline": "sum", "local membrane": "sum", "straight through": "sum", "snntorch hidden": "sum",
    "snntorch conv": "sum", "single step": "mean", "plif": "mean", "norse cells": "sum",
    "norse functional": "sum", "two frameworks": "sum",
}  # fmt: skip
READ = {"sum": lambda y: y.sum(0), "mean": lambda y: y.mean(0)}


def frames(entry, x):
    return x if entry.time == "first" else x.transpose(0, 1)


@pytest.mark.parametrize("name", list(NETWORKS))
def test_the_graph_computes_the_model_by_its_own_equations(name, tmp_path):
    entry = ENTRIES[name]
    net, x = entry.network().eval(), entry.example()
    graph = nir.read(sp.export_nir(net, tmp_path / "net.nir", x))
    wanted = answer(net, x)
    assert wanted.std() > 0.01
    found = READ[NETWORKS[name]](Simulator(graph).run(frames(entry, x)))
    torch.testing.assert_close(found.float(), wanted, rtol=1e-3, atol=1e-4)


class Sequence(nn.Module):
    """snnTorch's usual loop; returns the spikes of the last layer at each step."""

    def __init__(self, **keywords):
        super().__init__()
        self.a, self.n1 = nn.Linear(12, 16), snn.Leaky(beta=0.8, **keywords)
        self.b, self.n2 = nn.Linear(16, 6), snn.Leaky(beta=0.7, threshold=0.8, **keywords)

    def forward(self, x):
        m1, m2, out = self.n1.reset_mem(), self.n2.reset_mem(), []
        for step in x:
            s, m1 = self.n1(self.a(step), m1)
            s, m2 = self.n2(self.b(s), m2)
            out.append(s)
        return torch.stack(out)


def weighted(net):
    for p in net.parameters():
        if p.dim() > 1:
            p.data.mul_(3)
    return net.eval()


def test_snntorch_and_spikingjelly_read_a_network_of_snntorch(tmp_path):
    from snntorch.import_nir import import_from_nir
    from spikingjelly.activation_based import functional, nir_exchange

    net, x = weighted(Sequence(reset_mechanism="zero")), torch.rand(8, 3, 12) * 2
    graph = nir.read(sp.export_nir(net, tmp_path / "net.nir", x))
    wanted = net(x)
    assert 0.05 < wanted.mean() < 0.95
    torch.testing.assert_close(Simulator(graph).run(x).float(), wanted)

    theirs, state, steps = import_from_nir(nir.read(tmp_path / "net.nir")), None, []
    for step in x:
        spikes, state = theirs(step, state)
        steps.append(spikes[0] if isinstance(spikes, tuple) else spikes)
    torch.testing.assert_close(torch.stack(steps), wanted)

    other = nir_exchange.import_from_nir(nir.read(tmp_path / "net.nir"))
    functional.set_step_mode(other, "m")
    torch.testing.assert_close(other(x)[0], wanted)


@pytest.mark.parametrize("node", ["LIFNode", "IFNode"])
def test_a_potential_that_begins_elsewhere_is_measured_from_there(node, tmp_path):
    from spikingjelly.activation_based import functional, layer, neuron, nir_exchange

    torch.manual_seed(0)
    neurons = [getattr(neuron, node)(v_threshold=0.7, v_reset=-0.3) for _ in range(2)]
    net = weighted(nn.Sequential(layer.Linear(12, 16), neurons[0], layer.Linear(16, 6), neurons[1]))
    functional.set_step_mode(net, "m")
    net[2].weight.data.mul_(2)
    x = torch.rand(8, 3, 12) * 4
    path = sp.export_nir(net, tmp_path / "net.nir", x)
    wanted = answer(net, x)
    assert 3 <= wanted.sum() < wanted.numel()
    torch.testing.assert_close(Simulator(nir.read(path)).run(x).float(), wanted)
    other = nir_exchange.import_from_nir(nir.read(path))
    functional.set_step_mode(other, "m")
    torch.testing.assert_close(other(x)[0], wanted)


@pytest.mark.parametrize("delay", [True, False])
def test_a_soft_reset_is_written_as_nodes_that_do_it(delay, tmp_path):
    net, x = weighted(Sequence(reset_mechanism="subtract", reset_delay=delay)), torch.rand(8, 3, 12) * 2
    try:
        graph = nir.read(sp.export_nir(net, tmp_path / "net.nir", x))
    except sp_refusal():
        assert not delay  # without the delay the threshold may be taken off twice, which no such node does
        return
    assert {type(node).__name__ for node in graph.nodes.values()} >= {"LI", "Threshold", "Scale"}
    torch.testing.assert_close(Simulator(graph).run(x).float(), net(x))


def sp_refusal():
    from spikeprune.core.errors import InvalidValue

    return InvalidValue


def test_a_box_neuron_of_norse_is_a_plain_lif(tmp_path):
    import norse.torch as norse

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            p = norse.LIFBoxParameters(tau_mem_inv=torch.tensor(600.0))
            self.net = norse.SequentialState(
                nn.Linear(12, 16), norse.LIFBoxCell(p), nn.Linear(16, 6), norse.LIFBoxCell(p)
            )

        def forward(self, x):
            state, out = None, []
            for step in x:
                spikes, state = self.net(step, state)
                out.append(spikes)
            return torch.stack(out)

    net, x = weighted(Net()), torch.rand(8, 3, 12) * 6
    net.net[2].weight.data.mul_(4)
    path = sp.export_nir(net, tmp_path / "net.nir", x)
    wanted = net(x)
    assert 0.02 < wanted.mean() < 0.98
    graph = nir.read(path)
    assert sum(isinstance(node, nir.LIF) for node in graph.nodes.values()) == 2
    torch.testing.assert_close(Simulator(graph).run(x).float(), wanted)


def volumes():
    """Three dimensions, transposed, padded around the edge: as matrices, with max pooling of spikes behind them."""
    return [
        nn.Conv3d(1, 3, 3, padding=1), Leaks(), nn.MaxPool3d(2), nn.Conv3d(3, 2, 1), Leaks(),
        nn.Flatten(), nn.Linear(16, 3),
    ], (1, 4, 4, 4)  # fmt: skip


def transposed():
    return [
        nn.ConvTranspose2d(1, 3, 2, stride=2), Leaks(soft=True), nn.AvgPool2d(2), nn.Conv2d(3, 2, 3, padding=1),
        Leaks(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 3),
    ], (1, 4, 4)  # fmt: skip


def around():
    return [
        nn.Conv2d(1, 3, 3, padding=1, padding_mode="circular"), Leaks(), nn.Conv2d(3, 2, 3, padding=1),
        nn.BatchNorm2d(2), Leaks(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3),
    ], (1, 4, 4)  # fmt: skip


def dilated():
    return [nn.Conv1d(1, 3, 3, padding=2, dilation=2), Leaks(), nn.Flatten(), nn.Linear(24, 3)], (1, 8)


def comes_back():
    return [nn.Linear(6, 8), Back(nn.Linear(8, 8, bias=False)), nn.Linear(8, 3)], (6,)


def comes_back_softly():
    return [nn.Linear(6, 8), Back(nn.Linear(8, 8, bias=False), soft=True), nn.Linear(8, 3)], (6,)


def recurrent_of_snntorch():
    return [
        nn.Linear(6, 8),
        snn.RLeaky(beta=0.7, threshold=0.5, linear_features=8, init_hidden=True),
        nn.Linear(8, 3),
    ], (6,)


def recurrent_of_norse():
    return [
        nn.Linear(6, 8),
        Hidden(norse.LIFRecurrentCell(8, 8, p=norse.LIFParameters(v_th=torch.tensor(0.3)))),
        nn.Linear(8, 3),
    ], (6,)


def no_reset():
    return [
        nn.Linear(6, 8),
        snn.Leaky(beta=0.7, threshold=0.5, reset_mechanism="none", init_hidden=True),
        nn.Linear(8, 3),
    ], (6,)


class Leaks(nn.Module):
    """A neuron of a user's own; a loop begins it anew."""

    def __init__(self, soft=False):
        super().__init__()
        self.soft, self.v = soft, 0.0

    def forward(self, x):
        v = 0.6 * self.v + x
        spike = Rect.apply(v - 0.5)
        self.v = v - 0.5 * spike if self.soft else v * (1 - spike)
        return spike


class Back(Leaks):
    """Its spikes come back through weights at the next step."""

    def __init__(self, weights, soft=False):
        super().__init__(soft)
        self.weights, self.last = weights, None

    def forward(self, x):
        self.last = super().forward(x if self.last is None else x + self.weights(self.last))
        return self.last


class Drifts(Leaks):
    """It leaks nothing, and charges a little by itself at each step."""

    def forward(self, x):
        v = self.v + x + 0.1
        spike = Rect.apply(v - 0.5)
        self.v = v * (1 - spike)
        return spike


class Loop(nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        for module in self.modules():
            if isinstance(module, Leaks):
                module.v, module.last = 0.0, None
            elif isinstance(module, Hidden):
                module.state = None
            elif hasattr(module, "reset_mem"):
                module.reset_mem()
        return torch.stack([self.layers(step) for step in x]).sum(0)


BEYOND = [
    volumes, transposed, around, dilated, comes_back, comes_back_softly, recurrent_of_snntorch, recurrent_of_norse,
    no_reset,
]  # fmt: skip


@pytest.mark.parametrize("make", BEYOND)
def test_what_nir_has_no_node_for_is_written_as_matrices_loops_and_filters(make, tmp_path):
    torch.manual_seed(0)
    layers, shape = make()
    net, x = weighted(Loop(layers)).eval(), 2 * torch.rand(5, 3, *shape)
    graph = nir.read(sp.export_nir(net, tmp_path / "net.nir", 0.5 * x[:4]))
    wanted = answer(net, x)
    assert wanted.std() > 0.01
    torch.testing.assert_close(Simulator(graph).run(x).sum(0).float(), wanted, rtol=1e-3, atol=1e-3)


def test_a_current_of_a_neurons_own_without_a_leak_is_refused(tmp_path):
    net = Loop([nn.Linear(3, 4), Drifts(), nn.Linear(4, 2)])
    with pytest.raises(InvalidValue, match=r"'layers\.1' to NIR: it has a current of its own and no leak; NIR needs a"):
        sp.export_nir(net.eval(), tmp_path / "net.nir", 2 * torch.rand(4, 3, 3))


def test_a_matrix_that_is_too_large_is_refused(tmp_path, monkeypatch):
    layers, shape = volumes()
    monkeypatch.setattr(nir_linear, "LARGEST", 64)
    with pytest.raises(InvalidValue, match=r"'layers\.0' to NIR: NIR has no node that computes convolution"):
        sp.export_nir(Loop(layers).eval(), tmp_path / "net.nir", torch.rand(4, 3, *shape))


class Times(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.how = how

    def forward(self, x):
        return self.how(x)


@pytest.mark.parametrize("where", [2, 3])
def test_a_sum_of_a_value_with_itself_is_refused_and_its_double_is_not(where, tmp_path):
    def export(how):
        layers = [nn.Linear(6, 4), Leaks(), nn.Linear(4, 3)]
        return sp.export_nir(Loop([*layers[:where], Times(how), *layers[where:]]).eval(), tmp_path / "net.nir", x)

    x = torch.rand(4, 3, 6)
    assert export(lambda value: 2 * value).exists()
    named = {2: "'layers_3'", 3: "'output'"}[where]
    with pytest.raises(
        InvalidValue, match=f"cannot export {named} to NIR: it adds a value to itself; multiply it by 2"
    ):
        export(lambda value: value + value)


def test_a_result_of_several_axes_behind_a_matrix_is_refused_and_flattened_it_is_not(tmp_path):
    x, layers = torch.rand(4, 3, 1, 2, 2, 2), [nn.Conv3d(1, 2, 1)]
    with pytest.raises(InvalidValue, match=r"no node that gives its result several axes again; .* return it flattened"):
        sp.export_nir(Loop(layers).eval(), tmp_path / "net.nir", x)
    assert sp.export_nir(Loop([*layers, nn.Flatten()]).eval(), tmp_path / "net.nir", x).exists()


def test_a_scale_of_large_blocks_is_refused(tmp_path, monkeypatch):
    net, x = Loop([nn.BatchNorm3d(1), nn.Flatten(), nn.Linear(8, 3)]).eval(), torch.rand(4, 3, 1, 2, 2, 2)
    assert sp.export_nir(net, tmp_path / "net.nir", x).exists()  # as a matrix
    monkeypatch.setattr(nir_linear, "LARGEST", 16)
    with pytest.raises(InvalidValue, match=r"'layers\.0' to NIR: NIR has no node that scales .* maps with 3 axes"):
        sp.export_nir(net, tmp_path / "net.nir", x)


def test_a_package_that_takes_a_node_for_another_shape_or_refuses_the_graph_is_told(tmp_path, monkeypatch):
    import nir.ir.conv

    def refuses(nodes, edges):
        raise ValueError("no such\n  edge")

    layers, shape = dilated()
    net, x = weighted(Loop(layers)).eval(), torch.rand(4, 3, *shape)
    with monkeypatch.context() as patched:
        patched.setattr(nir, "NIRGraph", refuses)
        with pytest.raises(InvalidValue, match=r"the package nir refuses the graph .* for this network: no such edge$"):
            sp.export_nir(net, tmp_path / "net.nir", x)
    monkeypatch.setattr(nir.ir.conv, "calculate_conv_output", lambda *_: [10])
    monkeypatch.setattr(nir_linear, "LARGEST", 16)
    with pytest.raises(
        InvalidValue, match=r"the package nir takes its result for one of shape \[3, 10\], not \[3, 8\]"
    ):
        sp.export_nir(net, tmp_path / "net.nir", x)
    assert not (tmp_path / "net.nir").exists()


def test_behind_a_matrix_what_is_none_itself_is_refused(tmp_path):
    net = Loop(
        [nn.Conv3d(1, 2, 1), Leaks(), nn.Conv3d(2, 2, 1), nn.MaxPool3d(2), Leaks(), nn.Flatten(), nn.Linear(16, 3)]
    )
    with pytest.raises(InvalidValue, match=r"'layers\.3' to NIR: it stands behind a matrix over whole images"):
        sp.export_nir(net.eval(), tmp_path / "net.nir", 3 * torch.rand(4, 3, 1, 4, 4, 4))
