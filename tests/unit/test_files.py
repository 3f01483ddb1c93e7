"""Files that somebody sent: pipes and devices are not read, and entries that cannot be are refused in one line."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

import spikeprune as sp
from nets import conv_net
from spikeprune.cli.main import main
from spikeprune.core.errors import UserError
from spikeprune.lab.recipe.hash import file_digest
from spikeprune.lab.train.folder import RunFolder, read_safetensors
from spikeprune.lab.train.network import load_weights
from spikeprune.record.epoch import read_epochs

FINISHED = Path(__file__).parents[1] / "fixtures" / "0.1.0" / "finished" / "tiny-7ecc3f540e"
needs_pipes = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
READERS = {
    "masks": lambda path: sp.hold(conv_net(), path),
    "packed": sp.load_packed,
    "compiled": sp.load,
    "plan": sp.ChannelPlan.load,
    "weights": lambda path: load_weights(conv_net(), str(path)),
    "safetensors": read_safetensors,
    "digest": file_digest,
    "metrics": read_epochs,
    "record": lambda path: RunFolder(path.parent).read_record(),
}


@needs_pipes
@pytest.mark.parametrize("name", READERS)
def test_a_pipe_is_refused_and_never_read(name, tmp_path):
    """To read it would wait for ever."""
    path = tmp_path / "record.json"
    os.mkfifo(path)
    with pytest.raises(UserError) as caught:
        READERS[name](path)
    assert 20 <= len(str(caught.value)) <= 400
    assert "\n" not in str(caught.value)


@needs_pipes
@pytest.mark.parametrize(
    ("file", "command"),
    [
        ("record.json", "report"),
        ("masks.safetensors", "report"),
        ("metrics.jsonl", "report"),
        ("model.safetensors", "eval"),
    ],
)
def test_a_run_folder_with_a_pipe_in_it_ends_with_status_2(file, command, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(FINISHED, folder)
    (folder / file).unlink()
    os.mkfifo(folder / file)
    assert main([command, str(folder)]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) <= 2


@pytest.mark.parametrize("text", ["[" * 100_000, '{"schema": ' + "9" * 6000 + "}", '{"schema": 1}', "[]", "\x00"])
def test_a_plan_of_any_text_is_refused(text, tmp_path):
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(UserError) as caught:
        sp.ChannelPlan.load(tmp_path / "plan.json")
    assert 20 <= len(str(caught.value)) <= 400


@pytest.fixture(scope="module")
def plan():
    """A model, the plan of its small network, and its weights."""
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    with torch.no_grad():
        model[0].weight[1], model[0].bias[1] = 0, 0
    dead = {"0.weight": model[0].weight != 0, "0.bias": model[0].bias != 0}
    small, plan = sp.shrink(model, dead, torch.ones(1, 4))
    return model, json.loads(plan.to_json()), small.state_dict()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("keep", [0, -1]), ("keep", [0, 0]), ("keep", [0, 3]), ("keep", []), ("keep", [0.0, 2]), ("keep", [False, 2]),
        ("dim", -1), ("dim", 0.0), ("dim", "0"), ("dim", 7), ("size", 4), ("size", 2**70), ("tensor", 3),
        ("tensor", "x"),
    ],
)  # fmt: skip
def test_a_cut_that_cannot_be_is_refused(key, value, plan):
    model, good, state = plan
    sp.ChannelPlan.from_json(json.dumps(good)).rebuild(model, state)
    changed = json.loads(json.dumps(good))
    changed["cuts"][0][key] = value
    with pytest.raises(UserError):
        sp.ChannelPlan.from_json(json.dumps(changed)).rebuild(model, state)


def test_the_same_cut_twice_is_refused(plan):
    model, good, state = plan
    with pytest.raises(UserError, match="no channel plan"):
        sp.ChannelPlan.from_json(json.dumps({**good, "cuts": good["cuts"] + good["cuts"][:1]})).rebuild(model, state)


@pytest.mark.parametrize("change", [1, -1])
def test_a_packed_file_with_more_or_fewer_values_than_bits_is_refused(change, tmp_path):
    """More values were dropped without a word."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    model = conv_net()
    sp.save_packed(model, tmp_path / "good", sp.prune(model, "magnitude", 0.5))
    with safe_open(str(tmp_path / "good"), "pt") as file:
        facts, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    values = tensors["4.weight.values"]
    tensors["4.weight.values"] = torch.cat([values, values[:1]]) if change > 0 else values[:-1].clone()
    save_file(tensors, tmp_path / "bad", facts)
    sp.load_packed(tmp_path / "good")
    with pytest.raises(UserError, match="damaged"):
        sp.load_packed(tmp_path / "bad")


def changed_run(tmp_path, file, edit):
    """A finished run of which one safetensors file was changed."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "run"
    shutil.copytree(FINISHED, folder)
    tensors = load_file(folder / file)
    edit(tensors)
    save_file(tensors, folder / file)
    return str(folder)


def test_masks_of_numbers_in_a_run_folder_are_refused(tmp_path, capsys):
    def edit(tensors):
        name = next(iter(tensors))
        tensors[name] = tensors[name].float()

    assert main(["eval", changed_run(tmp_path, "masks.safetensors", edit)]) == 2
    assert "as torch.float32, which is no mask" in capsys.readouterr().err


def test_nan_in_the_network_of_a_run_folder_is_named(tmp_path, capsys):
    def edit(tensors):
        tensors["body.1.weight"][0] = float("nan")

    assert main(["eval", changed_run(tmp_path, "model.safetensors", edit)]) == 2
    assert "holds nan (not a number) in 'body.1.weight'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("where", "key", "value", "said"),
    [
        ((), "density", 0.99, "must be 1 - sparsity"),
        (("pruned",), "alive", 10**9, "prunable weights"),
        (("rounds", 0), "regrown", 10**9, "rounds[0].regrown is 1000000000"),
        (("rounds", 0), "survived", 10**9, "rounds[0].survived is 1000000000"),
    ],
)
def test_numbers_of_a_record_that_contradict_each_other_are_refused(where, key, value, said, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(FINISHED, folder)
    record = json.loads((folder / "record.json").read_text())
    place = record
    for part in where:
        place = place[part]
    place[key] = value
    (folder / "record.json").write_text(json.dumps(record))
    assert main(["report", str(folder)]) == 2
    assert said in capsys.readouterr().err
