"""`spikeprune bench` and `export` on tiny runs: what is printed and written, and how wrong input ends. No times."""

import json
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("spikingjelly.activation_based")
from safetensors import safe_open
from spikingjelly.activation_based import layer, neuron, surrogate

import spikeprune as sp
from spikeprune.cli.main import main
from spikeprune.core.errors import UserError
from spikeprune.lab.train import finished as opening
from spikeprune.lab.train.bench_run import _from_images
from spikeprune.lab.train.finished import finished
from spikeprune.lab.train.folder import read_safetensors
from spikeprune.lab.train.network import connect
from spikeprune.record.packed import read_packed
from spikeprune.runtime.compile import compile

TINY = ["--epochs", "1", "--data.limit", "200", "--batch", "64", "--precision", "fp32", "--baseline", "false"]
ONCE = ["--repeats", "1", "--threads", "1"]


def make_run(out: Path, *words: str) -> Path:
    assert main(["run", "digits", *TINY, *words, "--out", str(out)]) == 0
    (folder,) = out.iterdir()
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("weights"), "--model", "mlp")


@pytest.fixture(scope="module")
def channel_run(tmp_path_factory) -> Path:
    words = ["--model", "digits-conv", "--pattern", "channel", "--sparsity", "0.5", "--method", "magnitude"]
    return make_run(tmp_path_factory.mktemp("channels"), *words)


def ends(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, list[str], str]:
    """Exit status, lines of stdout, and stderr."""
    capsys.readouterr()
    status = main(words)
    captured = capsys.readouterr()
    return status, captured.out.splitlines(), captured.err


def test_bench_writes_what_it_prints(run, capsys):
    status, out, err = ends(capsys, "bench", str(run), "--batch", "1,4", *ONCE, "--json")
    assert status == 0, err
    (line,) = out
    result = json.loads(line)
    assert result == json.loads((run / "bench.json").read_text())
    assert result["inputs"] == {"kind": "test images", "count": 256, "shape": [1, 8, 8], "why_random": None}
    assert result["same_class"]["compiled fp32"] == 1.0
    assert set(result["accuracy"]) >= {"model", "compiled fp32", "compiled int16"}
    assert abs(result["accuracy"]["compiled fp32"] - result["accuracy"]["model"]) <= 1 / 355  # a tie may move one image
    (timing,) = result["timings"]
    assert (timing["threads"], timing["clock"]) == (1, "cpu")
    rows = {(row["batch"], row["engine"]) for row in timing["rows"]}
    engines = {"framework", "dense", "compiled fp32", "compiled int16"}
    assert {(batch, engine) for batch in (1, 4) for engine in engines} <= rows
    assert ("shrunk" in {engine for _, engine in rows}) == (result["not_shrunk"] is None)
    drawn = ET.fromstring((run / "bench.svg").read_text()).findall("{http://www.w3.org/2000/svg}rect")
    assert [rect.get("class") for rect in drawn].count("page") == 1
    assert len(drawn) - 1 == len(rows)


def test_bench_prints_the_machine_above_the_table(channel_run, capsys):
    status, out, err = ends(capsys, "bench", str(channel_run), "--batch", "2", *ONCE)
    assert status == 0, err
    result = json.loads((channel_run / "bench.json").read_text())
    assert out[0].startswith(result["cpu"])
    assert any("1 thread, CPU time" in line for line in out)
    assert sum(line.split()[:1] == ["2"] for line in out) == len(result["timings"][0]["rows"])
    assert out[-2:] == [str(channel_run / "bench.json"), str(channel_run / "report.html")]
    assert "How fast it runs" in (channel_run / "report.html").read_text()
    assert "cut its channels out already" in result["not_shrunk"]


def test_absent_data_is_replaced_by_random_inputs_and_said(run, capsys, monkeypatch):
    def absent(recipe):
        raise UserError("the files are not there")

    monkeypatch.setattr(opening, "load_data", absent)
    status, out, err = ends(capsys, "bench", str(run), "--batch", "1", *ONCE)
    assert status == 0, err
    assert any(line.startswith("inputs: 256 random inputs") for line in out)
    assert any("the files are not there" in line for line in out)
    # Whoever says where the data is wants the data.
    status, _, err = ends(capsys, "bench", str(run), "--data.root", "elsewhere", *ONCE)
    assert (status, "the files are not there" in err) == (2, True)


def test_a_compiled_file_computes_what_the_run_does(run, capsys):
    status, out, err = ends(capsys, "export", str(run), "--to", "compiled")
    assert status == 0, err
    assert out[-1] == str(run / "model.compiled")
    assert "engine" in out[0]
    opened = finished(run)
    x = opened.examples(64)
    with torch.no_grad():
        expected = opened.network(x)
    compiled = sp.load(run / "model.compiled")
    assert compiled.precision == "fp32"
    same = (compiled(x).argmax(-1) == expected.argmax(-1)).double().mean()
    assert same >= 0.98  # a tie at a threshold may move an image


def test_int16_says_what_it_changes(run, tmp_path, capsys):
    file = tmp_path / "small.snn"
    status, out, err = ends(capsys, "export", str(run), "--to", "compiled", "--precision", "int16", "--file", str(file))
    assert status == 0, err
    assert out[-1] == str(file)
    assert out[-2].startswith("int16: ")
    assert "of 256 test images" in out[-2]
    assert sp.load(file).precision == "int16"


def test_packed_weights_are_read_back_without_our_code(run, capsys):
    status, out, err = ends(capsys, "export", str(run), "--to", "safetensors")
    assert status == 0, err
    assert out[-1] == str(run / "export.safetensors")
    weights, masks = read_safetensors(run / "model.safetensors"), read_safetensors(run / "masks.safetensors")
    with safe_open(out[-1], "np") as file:
        facts, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert (facts["format"], facts["model"], facts["T"]) == ("spikeprune packed 1", "mlp", "4")
    for name, shape in json.loads(facts["shapes"]).items():
        bits = np.unpackbits(tensors[f"{name}.mask"], bitorder="little")[: np.prod(shape)].astype(bool)
        weight = np.zeros(shape, np.float32)
        weight[bits.reshape(shape)] = tensors[f"{name}.values"]
        np.testing.assert_array_equal(weight, weights[name].numpy())
        np.testing.assert_array_equal(bits.reshape(shape), masks[name].numpy())
    # The record's stored size: a bit for each prunable weight, the alive values, and all other parameters.
    record = json.loads((run / "record.json").read_text())
    network = finished(run).network.model
    rest = set(tensors) - {name for name, _ in network.named_buffers()}
    assert sum(tensors[name].nbytes for name in rest) == record["pruned"]["bytes"]


def test_packed_weights_are_read_back_by_ours(run, channel_run, tmp_path, capsys):
    for folder in (run, channel_run):
        file = tmp_path / f"{folder.parent.name}.safetensors"
        assert ends(capsys, "export", str(folder), "--to", "safetensors", "--file", str(file))[0] == 0
        state, masks = read_packed(file)
        wanted = read_safetensors(folder / "model.safetensors")
        assert state.keys() == wanted.keys()
        assert all(torch.equal(state[name], wanted[name]) for name in wanted)
        # A network that was cut is small as it is; its plan stands in the metadata instead.
        assert set(masks) == (set() if folder is channel_run else set(read_safetensors(folder / "masks.safetensors")))
    with safe_open(str(file), "pt") as opened:
        assert opened.metadata()["plan"] == (channel_run / "plan.json").read_text()
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(UserError, match="is damaged"):
        read_packed(file)
    with pytest.raises(UserError, match="is no packed network"):
        read_packed(run / "model.safetensors")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["bench", "nowhere"], "no run folder nowhere"),
        (["export", "nowhere", "--to", "compiled"], "no run folder nowhere"),
        (["export", "RUN"], "--to"),
        (["export", "RUN", "--to", "tflite"], "--to takes nir, onnx, compiled, safetensors"),
        (["export", "RUN", "--to", "onxx"], "did you mean 'onnx'"),
        (["export", "RUN", "--to", "compiled", "--precision", "int8"], "int16"),
        (["export", "RUN", "--to", "safetensors", "--precision", "int16"], "--precision is for --to compiled"),
        (["export", "RUN", "--to", "compiled", "--file", "no/such/folder/x"], "no/such/folder/x"),
        (["export", "RUN", "--to", "safetensors", "--file", "no/such/folder/x"], "no/such/folder/x"),
        (["bench", "RUN", "--batch", "0"], "1 or more"),
        (["bench", "RUN", "--batch", "one"], "got 'one'"),
        (["bench", "RUN", "--repeats", "0"], "1 or more"),
        (["bench", "RUN", "--threads", "3"], "threads must be 1 or all"),
    ],
)
def test_wrong_input_ends_with_status_2(words, message, run, capsys):
    status, out, err = ends(capsys, *[str(run) if word == "RUN" else word for word in words])
    assert (status, out) == (2, [])
    assert message in err
    assert 20 <= len(err.strip()) <= 330
    assert len(err.strip().splitlines()) <= 2


@pytest.mark.parametrize("name", ["model.safetensors", "masks.safetensors", "record.json"])
def test_a_damaged_run_is_refused(name, run, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(content[: len(content) // 2])
    for words in (["bench", str(copy), "--batch", "1", *ONCE], ["export", str(copy), "--to", "safetensors"]):
        status, out, err = ends(capsys, *words)
        assert (status, out) == (2, [])
        assert name in err


def test_a_model_of_sequences_is_timed_on_images():
    net = nn.Sequential(
        layer.Flatten(step_mode="m"),
        layer.Linear(64, 32, step_mode="m"),
        neuron.LIFNode(surrogate_function=surrogate.ATan(), step_mode="m"),
        layer.Linear(32, 10, step_mode="m"),
    ).eval()
    x = 3 * torch.rand(9, 1, 8, 8)
    network = connect(net, x, 4, 10, "auto", False)
    assert network.takes == "sequence"
    compiled = compile(_from_images(network), x[:2])
    with torch.no_grad():
        expected = network(x)
    assert expected.abs().mean() > 0
    torch.testing.assert_close(compiled(x), expected, rtol=1e-4, atol=1e-5)
