"""NIR and ONNX files compute what the model computes; NIR is run by its own equations, and by SpikingJelly's reader."""

import pytest
import torch
from shrinking import lively
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

import spikeprune as sp
from spikeprune.cli.main import main
from spikeprune.core.errors import InvalidValue, MissingDependency, UserError
from spikeprune.core.neuron import reset_after
from spikeprune.integrations.spikingjelly import SpikingJelly
from spikeprune.model.adapter import NeuronParams
from spikeprune.runtime import nir_linear
from spikeprune.runtime.compile.lower import lower_modules

nir = pytest.importorskip("nir")
onnxruntime = pytest.importorskip("onnxruntime")
from nir_run import Simulator  # noqa: E402


def outputs(model, images):
    functional.reset_net(model)
    with torch.no_grad():
        out = model(images)
    functional.reset_net(model)
    return out


def plain():
    """Every kind of layer once: conv, average and max pooling, LIF and IF, per-channel thresholds, linear."""
    net = nn.Sequential(
        layer.Conv2d(2, 6, 3, padding=1, bias=False), layer.BatchNorm2d(6), neuron.LIFNode(tau=2.0),
        layer.MaxPool2d(2, 2), layer.Conv2d(6, 8, 3, stride=2, padding=1), layer.BatchNorm2d(8),
        neuron.IFNode(v_threshold=0.7), layer.AvgPool2d(2, 2), layer.Conv2d(8, 4, 1), neuron.LIFNode(1.5, False),
        layer.Flatten(), layer.Linear(4, 3),
    )  # fmt: skip
    functional.set_step_mode(net, "m")
    return net, (torch.rand(3, 4, 2, 8, 8) < 0.4).float()


class Residual(nn.Module):
    """A sum before a neuron, one after it (SEW), and a shortcut of its own."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(layer.Conv2d(1, 4, 3, padding=1), layer.BatchNorm2d(4), neuron.LIFNode())
        self.body = nn.Sequential(layer.Conv2d(4, 4, 3, padding=1), layer.BatchNorm2d(4))
        self.short = nn.Sequential(layer.Conv2d(4, 4, 1), layer.BatchNorm2d(4))
        self.fires = neuron.LIFNode()
        self.again = nn.Sequential(layer.Conv2d(4, 4, 3, padding=1), layer.BatchNorm2d(4), neuron.LIFNode())
        self.pool, self.flat = layer.AvgPool2d(4), layer.Flatten()
        self.head = layer.Linear(16, 3)
        functional.set_step_mode(self, "m")

    def forward(self, x):
        x = self.stem(x)
        x = self.fires(self.body(x) + self.short(x))
        return self.head(self.flat(self.pool(self.again(x) + x)))


def residual():
    return Residual(), torch.rand(3, 4, 1, 8, 8)


def zoo():
    return sp.model("digits-conv", T=3, size=8), torch.rand(4, 1, 8, 8)


@pytest.fixture(params=[plain, residual, zoo])
def trained(request):
    torch.manual_seed(0)
    model, x = request.param()
    sp.prune(lively(model), "magnitude", 0.3)
    return model, x


def assert_equal_outputs(got, model, x):
    expected = outputs(model, x)
    assert expected.std() > 0.01  # it fires
    # A potential within rounding of its threshold may fall either way; most images have none.
    same = (got - expected).abs().amax((0, 2)) < 1e-4
    assert same.float().mean() >= 0.75, (got - expected).abs().amax()


def test_onnx_computes_the_same_for_any_batch(trained, tmp_path):
    model, x = trained
    path = sp.export_onnx(model, tmp_path / "net.onnx", x[..., :1, :, :, :])
    assert path == tmp_path / "net.onnx"
    (got,) = onnxruntime.InferenceSession(str(path)).run(None, {"x": x.numpy()})
    assert_equal_outputs(torch.from_numpy(got), model, x)


def test_nir_computes_the_same_by_its_own_equations(trained, tmp_path):
    model, x = trained
    path = sp.export_nir(model, tmp_path / "net.nir", x)
    frames = x if x.dim() == 5 else x.expand(3, *x.shape)
    assert_equal_outputs(Simulator(nir.read(str(path))).run(frames), model, x)


def test_spikingjelly_reads_the_graph_back(tmp_path):
    from spikingjelly.activation_based import nir_exchange

    torch.manual_seed(1)
    model = nn.Sequential(
        layer.Conv2d(2, 6, 3, padding=1, bias=False), layer.BatchNorm2d(6), neuron.LIFNode(tau=2.0),
        layer.AvgPool2d((2, 2)), layer.Conv2d(6, 4, 3), neuron.IFNode(), layer.Flatten(), layer.Linear(16, 3),
    )  # fmt: skip
    functional.set_step_mode(model, "m")
    x = (torch.rand(5, 3, 2, 8, 8) < 0.4).float()
    lively(model)
    sp.export_nir(model, tmp_path / "net.nir", x)
    other = nir_exchange.import_from_nir(nir.read(str(tmp_path / "net.nir")))
    functional.set_step_mode(other, "m")
    expected = outputs(model, x)
    assert expected.std() > 0
    got, _ = outputs(other.eval(), x)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_zeros_stay_zeros(tmp_path):
    model = sp.model("mlp", T=2, size=8)
    sp.prune(model, "magnitude", 0.9)
    path = sp.export_nir(model.eval(), tmp_path / "net.nir", torch.rand(1, 1, 8, 8))
    weights = [node.weight for node in nir.read(str(path)).nodes.values() if isinstance(node, nir.Affine)]
    expected = sum(int(p.count_nonzero()) for n, p in model.named_parameters() if p.dim() == 2)
    assert sum(int((weight != 0).sum()) for weight in weights) == expected


def pooled(pool):
    return [layer.Conv2d(1, 2, 3, padding=1), neuron.IFNode(), pool, layer.Flatten(), layer.Linear(18, 3)]


POOLS = {
    "adaptive": (layer.AdaptiveAvgPool2d(3), "adaptive pooling to a size that does not divide the input's"),
    "ceil": (layer.MaxPool2d(2, ceil_mode=True), "ceil_mode pools beyond the edge"),
    "border": (layer.AvgPool2d(2, padding=1, count_include_pad=False), "does not divide by the size of its window"),
    "divisor": (layer.AvgPool2d(3, 1, divisor_override=4), "does not divide by the size of its window"),
}


@pytest.mark.parametrize("name", POOLS)
def test_a_pooling_that_nir_has_not_is_a_matrix_or_refused(name, tmp_path, monkeypatch):
    pool, words = POOLS[name]
    torch.manual_seed(0)
    model, x = nn.Sequential(*pooled(pool)), torch.rand(4, 3, 1, 5, 5) * 4
    functional.set_step_mode(model, "m")
    path = sp.export_nir(model, tmp_path / "net.nir", x)
    assert_equal_outputs(Simulator(nir.read(str(path))).run(x), model.eval(), x)
    monkeypatch.setattr(nir_linear, "LARGEST", 1)
    with pytest.raises(InvalidValue, match=f"cannot export '2' to NIR: .*{words}"):
        sp.export_nir(model, tmp_path / "large.nir", x)


class Readout(nn.Module):
    """A layer behind a reduction over time."""

    def __init__(self, reduce, bias):
        super().__init__()
        self.body = nn.Sequential(layer.Linear(3, 4), neuron.IFNode())
        functional.set_step_mode(self.body, "m")
        self.reduce, self.last = reduce, nn.Linear(4, 2, bias=bias)

    def forward(self, x):
        return self.last(self.reduce(self.body(x)))


REDUCED = {"sum": lambda y: y.sum(0), "amax": lambda y: y.amax(0), "last": lambda y: y[-1]}


@pytest.mark.parametrize("name", REDUCED)
def test_a_layer_that_cannot_stand_before_the_reduction_is_refused(name, tmp_path):
    x = torch.rand(4, 2, 3)
    with pytest.raises(InvalidValue, match="what follows its reduction over time is not the same before it; let the"):
        sp.export_nir(Readout(REDUCED[name], bias=True), tmp_path / "net.nir", x)
    sp.export_nir(Readout(REDUCED["sum"], bias=False), tmp_path / "net.nir", x)


class Told(neuron.BaseNode):
    """A neuron of which an adapter tells the numbers."""

    def __init__(self, **numbers):
        super().__init__()
        self.numbers = NeuronParams(**{"decay": 0.5, "gain": 1.0, "v_threshold": 1.0, **numbers})

    def forward(self, x):
        p, v, spikes = self.numbers, self.numbers.v_rest, []
        for current in x:
            v_pre = p.v_rest + p.decay * (v - p.v_rest) + p.gain * current
            spikes.append((v_pre >= p.v_threshold).float())
            v = reset_after(v_pre, spikes[-1], p.v_threshold, p.v_reset)
        return torch.stack(spikes)


MIXED = torch.tensor([0.5, 1.0])
NUMBERS = {
    "a start": ({"v_reset": None, "v_rest": 0.25}, "its reset subtracts, and its potential does not begin at 0"),
    "two kinds": ({"decay": MIXED}, "some of its channels leak and some do not; NIR needs a node for each kind"),
    "two kinds that subtract": ({"decay": MIXED, "v_reset": None}, "some of its channels leak and some do not"),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_a_neuron_that_nir_cannot_say_is_refused(name, tmp_path, monkeypatch):
    numbers, words = NUMBERS[name]
    known = SpikingJelly.describe
    monkeypatch.setattr(SpikingJelly, "describe", lambda self, m: m.numbers if isinstance(m, Told) else known(self, m))
    model, x = nn.Sequential(layer.Linear(3, 2), Told(**numbers)), torch.rand(4, 2, 3)
    functional.set_step_mode(model, "m")
    with pytest.raises(InvalidValue, match=f"cannot export '1' to NIR: {words}"):
        sp.export_nir(model, tmp_path / "net.nir", x)


def test_a_number_for_each_position_is_refused(monkeypatch):
    known = SpikingJelly.describe
    monkeypatch.setattr(SpikingJelly, "describe", lambda self, m: m.numbers if isinstance(m, Told) else known(self, m))
    model = nn.Sequential(layer.Conv2d(2, 2, 1), Told(v_threshold=torch.rand(4, 4) + 0.5))
    functional.set_step_mode(model, "m")
    with pytest.raises(InvalidValue, match=r"'1' \(Told\): its v_threshold has shape \[4, 4\]; one value, or one per"):
        lower_modules(model, torch.rand(4, 2, 2, 4, 4))


def max_of_currents():
    return [layer.Conv2d(1, 2, 3), layer.MaxPool2d(2), layer.Flatten(), layer.Linear(2, 2), neuron.IFNode()]


@pytest.mark.parametrize(
    ("modules", "shape", "words"),
    [(max_of_currents, (1, 4, 4), "'1'.*not spikes")],
)
def test_what_nir_cannot_say_is_refused_by_name(modules, shape, words, tmp_path):
    model = nn.Sequential(*modules())
    functional.set_step_mode(model, "m")
    with pytest.raises(InvalidValue, match=words):
        sp.export_nir(model, tmp_path / "net.nir", torch.rand(2, 1, *shape))
    assert not (tmp_path / "net.nir").exists()


def test_missing_package_and_folder(monkeypatch, tmp_path):
    model, example = sp.model("mlp", T=2, size=8).eval(), torch.rand(1, 1, 8, 8)
    for export in (sp.export_nir, sp.export_onnx):
        with pytest.raises(UserError, match="cannot write"):
            export(model, tmp_path / "nowhere" / "net", example)
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    for export, extra in ((sp.export_nir, "nir"), (sp.export_onnx, "onnx")):
        with pytest.raises(MissingDependency, match=rf"spikeprune\[{extra}\]"):
            export(model, tmp_path / "net", example)


def test_a_run_is_exported(tmp_path, capsys):
    out = str(tmp_path / "runs")
    arguments = ["run", "digits", "--epochs", "1", "--data.limit", "100", "--baseline", "false", "--out", out]
    assert main(arguments) == 0
    run = capsys.readouterr().out.splitlines()[-1]
    for kind in ("nir", "onnx"):
        assert main(["export", run, "--to", kind]) == 0
        assert capsys.readouterr().out.splitlines()[-1] == f"{run}/model.{kind}"
    assert nir.read(f"{run}/model.nir").nodes["input"].output_type["output"].tolist() == [1, 8, 8]
    assert onnxruntime.InferenceSession(f"{run}/model.onnx").get_inputs()[0].shape[1:] == [1, 8, 8]
