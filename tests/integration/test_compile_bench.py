"""The measuring function: what it reports, and that it times nothing that is wrong. Times themselves are not tested."""

import pytest
import torch

pytest.importorskip("spikingjelly.activation_based")
from spikingjelly.activation_based import layer, neuron
from torch import nn

from spikeprune import zoo
from spikeprune.core.errors import InvalidValue, RunFailed
from spikeprune.runtime import bench, native
from spikeprune.runtime.compile import compile


@pytest.fixture
def net():
    torch.manual_seed(0)
    model = zoo.build("digits-conv", classes=10, T=4, size=8).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data = torch.randn_like(parameter) * (torch.rand_like(parameter) < 0.3)
    return model, torch.rand(3, 1, 8, 8)


def test_measure_reports_every_engine(net):
    model, x = net
    threads = torch.get_num_threads()
    result = bench.measure(model, x, batches=(1, 5), repeats=2, least=0.0, opponents=False, shrunk=model)
    assert torch.get_num_threads() == threads
    assert result["cpu"]
    assert result["isa"] in native.ISA_FLAGS
    engines = {row["engine"] for row in result["rows"]}
    assert {"framework", "dense", "compiled fp32", "compiled int16", "shrunk"} <= engines
    assert {row["batch"] for row in result["rows"]} == {1, 5}
    for row in result["rows"]:
        assert 0 < row["low_ms"] <= row["median_ms"] <= row["high_ms"]
        assert row["images_per_s"] == pytest.approx(1e3 * row["batch"] / row["median_ms"])
        ours = row["engine"].startswith("compiled") or row["engine"] == "shrunk"
        assert (row["speedup"] is not None) == ours


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_other_engines_compute_the_same_function(engine, net):
    pytest.importorskip(engine)
    model, x = net
    compiled = compile(model, x)
    runner = bench.exported_runners(compiled, x, 1)[engine]
    torch.testing.assert_close(torch.as_tensor(runner(x)), compiled(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("wrong", [lambda values: 3 * values + 1, lambda values: values * float("nan")])
def test_an_engine_that_computes_something_else_is_not_timed(wrong, net, monkeypatch):
    pytest.importorskip("onnxruntime")
    model, x = net
    compiled = compile(model, x)
    monkeypatch.setattr(bench, "_openvino", lambda *_: lambda x: compiled(x))
    monkeypatch.setattr(bench, "_onnxruntime", lambda *_: lambda x: wrong(compiled(x)))
    with pytest.raises(RunFailed, match=r"onnxruntime does not compute the model's function .*; not timed"):
        bench.exported_runners(compiled, x, 1)


def test_without_a_compiler_there_is_no_roofline(net, monkeypatch):
    monkeypatch.setattr(native, "library", lambda name: None)
    with pytest.raises(InvalidValue, match=r"the roofline is that of the C\+\+ kernels, and no compiler was found"):
        bench.roofline(compile(*net), milliseconds=1.0, N=2)


def test_wrong_spikes_are_not_timed(net):
    model, x = net
    compiled = compile(model, x)
    with torch.no_grad():
        model.stem[0].weight.neg_()
    with pytest.raises(RunFailed, match="spikes of 'body"):
        bench.assert_same_spikes(model, compiled, x)


def test_bad_settings(net):
    with pytest.raises(InvalidValue, match="repeats"):
        bench.measure(*net, repeats=0)


def test_share_of_multiplies(net):
    model, x = net
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data = torch.ones_like(parameter)
    body = model.body[1]
    body.weight.data[:32] = 0
    # stem, once per image: 64 positions x 9; then T = 4 times 64 positions x 64 x 32 x 9, half kept; head 64 x 16 x 10
    stem, conv, head = 64 * 32 * 9, 4 * 64 * 64 * 32 * 9, 4 * 64 * 16 * 10
    share = bench.share_of_multiplies(compile(model, x).network)
    assert share == pytest.approx((stem + conv / 2 + head) / (stem + conv + head))


@pytest.mark.skipif(native.compiler() is None, reason="no C++ compiler")
def test_roofline_counts_kept_weights(net):
    model, x = net
    compiled = compile(model, x)
    roof = bench.roofline(compiled, milliseconds=1.0, N=2)
    kept = int(torch.count_nonzero(model.body[1].weight)) * 64 + int(torch.count_nonzero(model.head.weight))
    assert roof["adds"] == kept * 2 * 4
    assert roof["share"] == pytest.approx(roof["adds"] / roof["peak_adds_per_ns"] / 1e6)
    assert roof["share_of_weights"] == roof["share"]  # max pooling: every input is one bit


@pytest.mark.skipif(native.compiler() is None, reason="no C++ compiler")
def test_means_of_spikes_are_two_bits_to_the_roofline():
    model = nn.Sequential(
        layer.Conv2d(1, 4, 3, padding=1, step_mode="m"), neuron.IFNode(step_mode="m"),
        layer.AvgPool2d(2, step_mode="m"), layer.Conv2d(4, 3, 1, step_mode="m"), neuron.IFNode(step_mode="m"),
    ).eval()  # fmt: skip
    T, N = 3, 2
    roof = bench.roofline(compile(model, torch.rand(T, N, 1, 8, 8)), milliseconds=1.0, N=N)
    first, second = 4 * 9 * 64, 3 * 4 * 16  # the sequence's first layer runs at every step too
    assert roof["adds"] == (first + 2 * second) * N * T
    assert roof["share_of_weights"] / roof["share"] == pytest.approx((first + second) / (first + 2 * second))
