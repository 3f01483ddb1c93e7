"""NIR and ONNX files compute what the model computes; NIR is run by its own equations, and by SpikingJelly's reader."""

import pytest
import torch
from shrinking import lively
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

import spikeprune as sp
from spikeprune.cli.main import main
from spikeprune.core.errors import InvalidValue, MissingDependency, UserError

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
