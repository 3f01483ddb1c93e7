"""The page of a real run, made by `run` and made anew by `report`; and what statistics.json says of its layers."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from spikingjelly.activation_based.neuron import LIFNode
from torch import Tensor

from spikeprune.cli.main import main
from spikeprune.count.counts import count
from spikeprune.integrations import adapter_for
from spikeprune.lab.train.folder import RunFolder, read_safetensors
from spikeprune.lab.train.layers import QUANTILES, layer_statistics
from spikeprune.lab.train.network import TimedNetwork, build, connect

TINY = ["--model", "digits-conv", "--epochs", "1", "--data.limit", "128", "--precision", "fp32"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A short run of both networks."""
    out = tmp_path_factory.mktemp("runs")
    assert main(["run", "digits", *TINY, "--out", str(out)]) == 0
    (path,) = out.iterdir()
    return RunFolder(path)


def small_network() -> tuple[TimedNetwork, Tensor]:
    model = build("digits-conv", 10, 4, (1, 8, 8), seed=0).eval()
    x = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return connect(model, x, 4, 10, "auto", False), x


def test_run_leaves_a_page_with_its_own_numbers(finished: RunFolder):
    page, record = finished.report.read_text(encoding="utf-8"), finished.read_record()
    for side in ("dense", "pruned"):
        assert f"{100 * record[side]['accuracy']:.2f}\u00a0%" in page
        assert f"{record[side]['alive']:,}" in page
        assert f"{record[side]['synops']:,.1f}" in page
    for name in read_safetensors(finished.masks):
        assert name.removesuffix(".weight") in page
    for heading in ("Through pruning", "What is left", "grew back", "near neurons", "they fire", "What it cost"):
        assert heading in page
    assert "first layer" in page
    assert "classifier" in page


def test_statistics_add_up_to_the_record(finished: RunFolder):
    statistics, record = json.loads(finished.statistics.read_text()), finished.read_record()
    for side in ("dense", "pruned"):
        layers, neurons = statistics[side]["layers"], statistics[side]["neurons"]
        operations = [layer["acs"] + layer["mac_ops"] for layer in layers.values()]
        assert math.fsum(operations) == pytest.approx(record[side]["synops"])
        rates = [neuron["firing_rate"] for neuron in neurons.values()]
        assert min(rates) <= record[side]["firing_rate"] <= max(rates)
        assert next(iter(layers)).startswith("stem")  # the model's order, not the alphabet's
        assert [layer["neuron"] is None for layer in layers.values()] == [False] * (len(layers) - 1) + [True]


def test_reports_of_several_runs_are_made_anew(finished: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    copies = [tmp_path / "one", tmp_path / "two"]
    for copy in copies:
        shutil.copytree(finished.path, copy)
        (copy / "report.html").write_text("old")
    capsys.readouterr()
    assert main(["report", *map(str, copies)]) == 0
    comparison = tmp_path / "comparison.html"
    assert capsys.readouterr().out.split() == [*(str(copy / "report.html") for copy in copies), str(comparison)]
    assert "</html>" in comparison.read_text()
    for copy in copies:
        assert (copy / "report.html").read_bytes() == finished.report.read_bytes()


def test_a_damaged_run_is_wrong_input(finished: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    shutil.copytree(finished.path, tmp_path / "copy")
    masks = tmp_path / "copy" / "masks.safetensors"
    masks.write_bytes(masks.read_bytes()[:100])
    assert main(["report", str(tmp_path / "copy")]) == 2
    assert "masks.safetensors" in capsys.readouterr().err


def test_criticality_equals_a_membrane_simulated_beside():
    network, x = small_network()
    drives: list[Tensor] = []
    neuron = network.adapter.neurons(network.model)["body.0"]
    hook = neuron.register_forward_pre_hook(lambda _, args: drives.append(args[0].detach()))
    counts = count(network.model, [x])
    hook.remove()
    found = layer_statistics(network, [x], counts)["neurons"]["body.0"]
    # LIF with tau 2, threshold 1 and reset to 0: v_pre = v + (x - v) / 2. ATan with alpha 2: 1 / (1 + (pi u)^2).
    v, curve = torch.zeros_like(drives[0][0]), torch.zeros_like(drives[0][0])
    for drive in drives[0]:
        v_pre = v + (drive - v) / 2
        curve += 1 / (1 + (math.pi * (v_pre - 1)) ** 2)
        v = v_pre * (v_pre < 1)
    score = (curve / len(drives[0])).amax((2, 3)).mean(0)
    expected = torch.quantile(score.double(), torch.tensor(QUANTILES, dtype=torch.float64))
    assert found["criticality"] == pytest.approx(expected.tolist(), rel=1e-5)
    assert found["peak"] == pytest.approx(1.0)
    assert found["firing_rate"] == counts.firing_rates["body.0"]


def test_a_model_that_criticality_refuses_has_rates_all_the_same():
    model = torch.nn.Sequential(LIFNode(), torch.nn.Flatten(), torch.nn.Linear(64, 10))  # no layer feeds the neuron
    x = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    found = layer_statistics(TimedNetwork(model, adapter_for(model), "step", 1, "mean"), [x], count(model, [x]))
    assert set(found["neurons"]["0"]) == {"firing_rate"}
    assert found["layers"]["2"]["neuron"] is None


def test_statistics_leave_the_network_as_it_was():
    network, x = small_network()
    network.model.train()
    network.model.stem.eval()
    before = {name: value.clone() for name, value in network.model.state_dict().items()}
    modes = [module.training for module in network.model.modules()]
    layer_statistics(network, [x], count(network.model, [x]))
    assert [module.training for module in network.model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in network.model.state_dict().items())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in network.model.modules())
