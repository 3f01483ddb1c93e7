"""Files that somebody sent: pipes and devices are not read, and entries that cannot be are refused in one line."""

import copy
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

import spikeprune as sp
from nets import conv_net, lif
from spikeprune.cli.main import main
from spikeprune.core.errors import InvalidValue, UserError
from spikeprune.lab.recipe.hash import file_digest
from spikeprune.lab.train.folder import RunFolder, read_safetensors
from spikeprune.lab.train.network import load_weights
from spikeprune.model.adapter import adapter_for
from spikeprune.record.epoch import read_epochs
from spikeprune.record.tensors import as_safetensors
from spikeprune.shrink.plan import Cut
from spikeprune.squeeze import certificate
from spikeprune.zoo.paper import Gate

FIXTURES = Path(__file__).parents[1] / "fixtures" / "0.1.0"
FINISHED = FIXTURES / "finished" / "tiny-7ecc3f540e"
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


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"schema": ' + "9" * 6000 + "}", '{"schema": 1}', "[]", "\x00", "\xff"]
)
def test_a_plan_of_any_text_is_refused(text, tmp_path):
    (tmp_path / "plan.json").write_text(text, encoding="latin1")  # the last one is no UTF-8
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


@pytest.mark.parametrize("entry", [{"gates": {"1": [0, 0]}}, {"gates": {"1": [-1]}}, {"blocked": ["said", 1]}])
def test_a_gate_or_a_reason_that_cannot_be_is_refused(entry, plan):
    with pytest.raises(UserError, match=r"no channel plan, or a damaged one; `plan.save` writes it anew"):
        sp.ChannelPlan.from_json(json.dumps({**plan[1], **entry}))


@pytest.mark.parametrize("cuts", [(), (Cut("1.keep", 0, 4, (0, 1)),)])
def test_a_gate_that_passes_on_a_channel_that_is_not_left_is_refused_before_anything_is_cut(cuts):
    model, left = nn.Sequential(nn.Conv2d(1, 4, 1), Gate(4)), 2 if cuts else 4
    sp.ChannelPlan(cuts, {"1": (left - 1,)}).apply(copy.deepcopy(model))
    with pytest.raises(
        InvalidValue, match=f"passes channel {left} on at the gate '1', which is left with {left}; build"
    ):
        sp.ChannelPlan(cuts, {"1": (0, left)}).apply(model)
    assert len(model[1].keep) == 4


def test_the_same_cut_twice_is_refused(plan):
    model, good, state = plan
    with pytest.raises(UserError, match="no channel plan"):
        sp.ChannelPlan.from_json(json.dumps({**good, "cuts": good["cuts"] + good["cuts"][:1]})).rebuild(model, state)


@pytest.fixture(scope="module")
def certified():
    model = nn.Sequential(nn.Linear(4, 3), lif())
    return certificate.certify(model, {}, torch.ones(2, 4), adapter_for(model))


def _with_head(certified, head):
    """The certificate with another head, whose digest somebody has computed."""
    tensors = {"input": certified.example}
    digest = certificate._digest_of(head, tensors)
    return as_safetensors(tensors, {"format": certificate.FORMAT, "head": head, "digest": digest})


HEADS = {
    "nested": "[" * 100_000,
    "a list": "[]",
    "a list of neurons": '{"neurons": []}',
    "no tensors": '{"neurons": {}}',
    "a list of tensors": '{"neurons": {}, "tensors": [], "masks": {}, "tolerance": 0.1}',
    "endless spikes": '{"neurons": {"1": 1e999}, "tensors": {}, "masks": {}, "tolerance": 0.1}',
    "an endless tolerance": '{"neurons": {}, "tensors": {}, "masks": {}, "tolerance": 1' + "0" * 400 + "}",
}


def test_a_certificate_is_read_back(certified):
    for content in (certified.as_bytes(), certified.as_text()):
        assert certificate.read_certificate(content, "it").tensors == certified.tensors


@pytest.mark.parametrize("content", [b"", b"no tensors", bytes(100), "no base64 !", "bm9uZQ==", *HEADS])
def test_a_certificate_of_any_bytes_is_refused(content, certified):
    content = _with_head(certified, HEADS[content]) if content in HEADS else content
    with pytest.raises(UserError, match=r"certificate in it is damaged or none of ours; squeeze again, or restore"):
        certificate.read_certificate(content, "it")


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


# ---- run folders of which something is another's -----------------------------------------------------------------


def copied(tmp_path, name="run", recipe=None, record=None):
    """A finished run of which entries of recipe.yaml and record.json were changed; the keys of both may have a dot."""
    folder = Path(shutil.copytree(FINISHED, tmp_path / name))
    for file, read, write, changes in (
        ("recipe.yaml", yaml.safe_load, yaml.safe_dump, recipe or {}),
        ("record.json", json.loads, json.dumps, record or {}),
    ):
        content = read((folder / file).read_text())
        for key, value in changes.items():
            *groups, last = key.split(".")
            place = content
            for group in groups:
                place = place[group]
            place[last] = value
        (folder / file).write_text(write(content))
    return folder


def test_weights_that_the_masks_of_a_run_folder_cut_are_named(tmp_path, capsys):
    def swap(tensors):
        mask = tensors["head.weight"].flatten()
        alive, dead = int(mask.int().argmax()), int((~mask).int().argmax())
        mask[alive], mask[dead] = False, True

    assert main(["eval", changed_run(tmp_path, "masks.safetensors", swap)]) == 2
    said = capsys.readouterr().err
    assert "1 weights of " in said
    assert "are not 0 although masks.safetensors cuts them (first in 'head.weight'); restore both files" in said


def test_weights_of_another_network_in_a_run_folder_are_named(tmp_path, capsys):
    assert main(["eval", changed_run(tmp_path, "model.safetensors", lambda tensors: tensors.pop("head.weight"))]) == 2
    said = capsys.readouterr().err
    assert "model.safetensors does not fit the network digits-conv; restore it or run again" in said


def test_a_run_on_recordings_is_not_timed_on_images(tmp_path, capsys):
    folder = copied(tmp_path, recipe={"data.name": "dvs128-gesture"})
    assert main(["bench", str(folder)]) == 2
    said = capsys.readouterr().err
    assert "bench times networks of still images, and dvs128-gesture holds recordings; `spikeprune export RUN" in said


def test_a_run_whose_data_is_gone_and_of_no_known_shape_says_what_helps(tmp_path, capsys):
    folder = copied(tmp_path, recipe={"data.name": "fashion-mnist"}, record={"data.shape": None})
    assert main(["export", str(folder), "--to", "safetensors"]) == 2
    said = capsys.readouterr().err
    assert f"the data of {folder} is not there, and its record.json does not tell their shape; pass --root DIR" in said


def test_runs_on_other_data_are_not_analysed_together(tmp_path, capsys):
    one, other = copied(tmp_path), copied(tmp_path, "other", recipe={"data.name": "fashion-mnist"})
    assert main(["analyze", str(one), "--against", str(other)]) == 2
    said = capsys.readouterr().err
    assert f"{other} learned from fashion-mnist, {one} from digits; analyze takes runs on the same data" in said


def test_runs_of_other_seeds_are_not_analysed_against_each_other(tmp_path, capsys):
    def of(name, seed, **recipe):
        recipe = {"seed": seed, **recipe}
        changes = {"seed": seed, "settings_hash": name} | {f"settings.{key}": value for key, value in recipe.items()}
        return str(copied(tmp_path, name, recipe, changes))

    words = ["analyze", of("a", 0), of("b", 1), "--against", of("c", 2, method="magnitude")]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "no run of magnitude has a seed of the runs before --against; runs are paired by seed" in said
    assert main([*words, of("d", 2, method="magnitude")]) == 2
    assert "two runs of magnitude have the same seed ([2, 2]); give one run a seed" in capsys.readouterr().err


def test_a_network_whose_channels_were_cut_is_not_squeezed(tmp_path, capsys):
    channels = {"before": 9, "after": 3, "groups": {"a": [9, 3]}, "layers": {}}
    assert main(["squeeze", str(copied(tmp_path, record={"channels": channels}))]) == 2
    said = capsys.readouterr().err
    assert "is smaller than its model, since channels were cut out, and cannot be squeezed yet; take a run of" in said


def test_a_comparison_that_cannot_be_written_is_named(tmp_path, capsys):
    (tmp_path / "comparison.html").mkdir()
    assert main(["report", str(copied(tmp_path)), str(copied(tmp_path, "other"))]) == 2
    said = capsys.readouterr().err
    assert f"cannot write {tmp_path / 'comparison.html'}: Is a directory; `spikeprune compare --html FILE`" in said


def safetensors_head(text):
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"no tensors at all", "it is damaged, or neither a run folder, a compiled network nor a safetensors file"),
        (safetensors_head(b"[" * 200_000), "it is damaged, or neither a run folder, a compiled network"),
        (safetensors_head(b'{"__metadata__": 1}'), "it is damaged, or neither a run folder, a compiled network"),
        (safetensors_head(b'{"__metadata__": {"certificate": "no"}}'), "the certificate in a.bin is damaged or none"),
        (safetensors_head(b'{"__metadata__": {"certificate": 5}}'), "the certificate in a.bin is damaged or none"),
    ],
)
def test_a_file_that_is_no_network_is_told_from_one_that_is_nothing_to_compare_with(content, words, tmp_path, capsys):
    """Of the file that is verified it is a difference; of the one that it is compared with it is wrong input."""
    file = tmp_path / "a.bin"
    file.write_bytes(content)
    assert main(["verify", str(file)]) == 1
    assert f"DIFFERS  file: {words}" in capsys.readouterr().out
    for verified in (FINISHED, FINISHED / "model.safetensors"):
        assert main(["verify", str(verified), "--against", str(file)]) == 2
        said = capsys.readouterr().err
        assert f"{file} is nothing to compare with: {words}" in said
        assert "check --against" in said


def test_a_certificate_that_is_not_there_is_told(tmp_path, capsys):
    for verified in (FINISHED, FINISHED / "model.safetensors"):
        assert main(["verify", str(verified), "--against", str(tmp_path / "gone")]) == 2
        said = capsys.readouterr().err
        assert f"no run folder or file {tmp_path / 'gone'} to compare with; --against takes a run that" in said


def other_data(state):
    return {**state, "checksum": "0" * 64}


def another_phase(state):
    return {**state, "phase": {"name": state["phase"]["name"]}}


def weights_of_another_network(state):
    return {**state, "phase": {**state["phase"], "model": {"a": torch.ones(2)}}}


def pruner_of_a_later_version(state):
    phase = state["phase"]
    return {**state, "phase": {**phase, "pruner": {**phase["pruner"], "version": 99}}}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (other_data, "began with other data than digits is now; bring that data back, or use another --out"),
        (another_phase, "does not hold this run (KeyError); remove that folder to start the run anew"),
        (weights_of_another_network, "does not hold this run (RuntimeError); remove that folder"),
        (pruner_of_a_later_version, "pruner state has version 99, this library reads"),
    ],
)
def test_a_checkpoint_of_something_else_is_not_gone_on_with(change, said, tmp_path, capsys):
    (killed,) = (path for path in (FIXTURES / "killed").iterdir() if path.is_dir())
    folder = RunFolder(Path(shutil.copytree(killed, tmp_path / killed.name)))
    folder.save_checkpoint("last", change(folder.load_checkpoint("last")))
    before = folder.metrics.read_bytes()
    assert main(["run", str(FIXTURES / "tiny.yaml"), "--out", str(tmp_path)]) == 2
    assert said in capsys.readouterr().err
    assert folder.metrics.read_bytes() == before
