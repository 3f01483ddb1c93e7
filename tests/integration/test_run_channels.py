"""Structured runs: pruned between two trainings or during one, physically small at the end, resumed exactly."""

import json

import pytest

from nets import assert_same
from spikeprune.cli.main import main
from spikeprune.lab.recipe import load
from spikeprune.lab.train import run as runs
from spikeprune.lab.train.checkpointed import CheckpointedTraining
from spikeprune.lab.train.folder import read_safetensors

SMALL = [
    "--model", "digits-conv", "--pattern", "channel", "--sparsity", "0.5", "--data.limit", "128", "--T", "2",
    "--data.test_limit", "64", "--baseline", "false", "--optim.slim", "0.0001", "--epochs", "2",
]  # fmt: skip
TWO = ["--prune.finetune", "1ep"]


def recipe(out, *more):
    return load("digits", [*SMALL, *more, "--out", str(out)])


class Stop(Exception):
    pass


def stopping(monkeypatch, saves):
    """The run ends before its checkpoint number `saves`, as if killed."""
    left, save = [saves], CheckpointedTraining.save

    def limited(self, phase, done):
        left[0] -= 1
        if left[0] < 0:
            raise Stop
        save(self, phase, done)

    monkeypatch.setattr(CheckpointedTraining, "save", limited)


def test_two_trainings_and_a_small_network(tmp_path, monkeypatch, capsys):
    folder = runs.run(recipe(tmp_path / "whole", *TWO))
    record = folder.read_record()
    assert record["channels"]["before"] == 96
    assert record["channels"]["after"] == record["pruned"]["alive"] == 48
    assert record["sparsity"] == 1 - record["pruned"]["alive"] / record["dense"]["alive"] == 0.5
    weights = read_safetensors(folder.model)
    assert record["pruned"]["parameters"] == sum(
        t.numel() for n, t in weights.items() if "running" not in n and t.dim()
    )
    assert record["pruned"]["macs"] < record["dense"]["macs"] / 2
    assert set(record["stages"]) == {"pretrained", "pruned", "finetuned"}
    assert record["stages"]["finetuned"] == record["pruned"]["accuracy"]
    lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    assert [(line["phase"], line["epoch"], line["sparsity"]) for line in lines] == [
        ("pretrain", 1, 0.0), ("pruned", 2, 0.5),
    ]  # fmt: skip
    masks = read_safetensors(folder.masks)
    assert masks["stem.0.weight"].shape == (32, 1, 3, 3)  # of the network as the recipe builds it
    assert main(["eval", str(folder.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == record["pruned"]["accuracy"]
    assert main(["shrink", str(folder.path), "--json"]) == 0
    shrunk = json.loads(capsys.readouterr().out)
    assert shrunk["after"]["parameters"] == record["pruned"]["parameters"]
    assert not folder.small.exists()
    # Killed between and within the stages: checkpoint 1 starts the first, 2 ends it, 3 starts the second, 4 ends it.
    for saves in (1, 2, 3):
        again = recipe(tmp_path / f"killed{saves}", *TWO)
        with monkeypatch.context() as patch:
            stopping(patch, saves)
            with pytest.raises(Stop):
                runs.run(again)
        resumed = runs.run(again)
        assert_same(read_safetensors(resumed.model), weights)
        assert_same(read_safetensors(resumed.masks), masks)
        other = resumed.read_record()
        for key in ("dense", "pruned", "rounds", "channels", "stages"):
            assert other[key] == record[key], key
        assert len(resumed.metrics.read_text().splitlines()) == len(lines)


def test_channels_pruned_during_training_end_small_too(tmp_path):
    more = ["--prune.begin", "0it", "--prune.end", "3it", "--prune.every", "1it", "--prune.events", "1"]
    folder = runs.run(recipe(tmp_path, *more, "--seed", "3"))
    record = folder.read_record()
    assert record["pruned"]["alive"] == record["channels"]["after"] == 48
    assert [event["kept"] for event in record["rounds"]][-1] == 48
    assert folder.plan.is_file()
    assert sum(pair[1] for pair in record["channels"]["groups"].values()) == 48
    assert "stages" not in record


def test_a_run_of_weights_is_shrunk_beside_what_is_there_or_refused(tmp_path, capsys):
    keys = ["--pattern", "weight", "--optim.slim", "0", "--prune.begin", "0it", "--prune.end", "2it"]
    more = [*keys, "--prune.every", "1it", "--prune.events", "1", "--epochs", "1", "--method", "magnitude"]
    folder = runs.run(recipe(tmp_path, *more))
    before = folder.model.read_bytes()
    status = main(["shrink", str(folder.path)])
    out, error = capsys.readouterr()
    assert folder.model.read_bytes() == before
    if status == 0:
        assert folder.small.is_file()
        assert str(folder.plan) in out
    else:
        assert status == 2
        assert len(error.splitlines()) <= 2


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--sparsity", "0.99", *TWO], "a layer would vanish"),
        (["--pattern", "weight", *TWO], "prune.finetune"),
        (["--prune.finetune", "9ep"], "longer than the whole run"),
        (["--method", "pca", "--pattern", "weight"], "pattern='channel'"),
    ],
)
@pytest.mark.parametrize("dry", [False, True])
def test_wrong_input_is_one_line_and_status_2(tmp_path, capsys, more, message, dry):
    words = ["run", "digits", *SMALL, *more, "--out", str(tmp_path / "out"), *(["--dry-run"] if dry else [])]
    assert main(words) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert message in error[0]
    assert not (tmp_path / "out").exists()


def test_dry_run_tells_the_channels(tmp_path, capsys):
    assert main(["run", "digits", *SMALL, *TWO, "--out", str(tmp_path), "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "prunable channels: 96" in lines
    assert "event 1: step 2 target 0.5000 kept 48" in lines
