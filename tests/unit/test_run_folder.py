"""The run folder: files appear whole or not at all, damage is seen, foreign folders are left alone."""

import dataclasses
import errno
import hashlib
import io
import json
import os

import pytest
import torch

from spikeprune.core.errors import UserError
from spikeprune.lab.train.folder import _MAGIC, RunFolder, read_safetensors
from spikeprune.record.epoch import Epoch
from spikeprune.record.whole import write_whole

SETTINGS = {"name": "digits", "sparsity": 0.95, "out": "runs", "data": {"name": "digits", "root": None}}


def line(epoch):
    return Epoch(
        phase="dense", epoch=epoch, step=epoch, lr=0.1, train_loss=1.0, train_accuracy=0.5, val_loss=None,
        val_accuracy=None, sparsity=0.0,
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    made = RunFolder(tmp_path / "digits-0123456789")
    made.open(SETTINGS)
    return made


def test_opening_again_is_the_same_run(folder):
    folder.open({**SETTINGS, "out": "elsewhere", "data": {"name": "digits", "root": "/moved"}})
    assert folder.recipe.is_file()


def test_a_run_of_other_settings_is_refused_and_unharmed(folder):
    before = folder.recipe.read_bytes()
    with pytest.raises(UserError, match=r"other settings \(sparsity is 0.95 there and 0.9 here\)"):
        folder.open({**SETTINGS, "sparsity": 0.9})
    assert folder.recipe.read_bytes() == before


@pytest.mark.parametrize("text", ["", "- 1", "sparsity: [", "\x00\x01"])
def test_a_damaged_recipe_is_refused(folder, text):
    folder.recipe.write_text(text)
    with pytest.raises(UserError, match=r"recipe\.yaml is damaged|other settings"):
        folder.open(SETTINGS)


def test_a_foreign_folder_is_refused_and_unharmed(tmp_path):
    (tmp_path / "digits-1").mkdir()
    (tmp_path / "digits-1" / "thesis.txt").write_text("chapter 1")
    with pytest.raises(UserError, match=r"is no run folder \(it holds thesis.txt\)"):
        RunFolder(tmp_path / "digits-1").open(SETTINGS)
    assert [path.name for path in (tmp_path / "digits-1").iterdir()] == ["thesis.txt"]


def test_a_folder_that_a_kill_left_empty_is_taken(tmp_path):
    (tmp_path / "digits-1").mkdir()
    (tmp_path / "digits-1" / ".recipe.yaml.part").write_text("half")
    RunFolder(tmp_path / "digits-1").open(SETTINGS)


def test_only_one_process_works_in_a_folder(folder):
    with folder.locked(), pytest.raises(UserError, match="another process is working"), RunFolder(folder.path).locked():
        pass
    with folder.locked():
        pass


def test_checkpoints_round_trip(folder):
    assert folder.load_checkpoint("last") is None
    state = {"hash": "a", "weights": torch.arange(3.0), "nested": [1, None, {"x": 0.5}]}
    folder.save_checkpoint("last", state)
    loaded = folder.load_checkpoint("last", hash="a")
    assert loaded is not None
    assert torch.equal(loaded["weights"], state["weights"])
    assert loaded["nested"] == state["nested"]


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_the_checkpoint_before_stands_in_for_a_damaged_one(folder, damage):
    folder.save_checkpoint("last", {"hash": "a", "epoch": 1})
    folder.save_checkpoint("last", {"hash": "a", "epoch": 2})
    path = folder.checkpoints / "last.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes({"flip": bytes(content), "cut": bytes(content[:-10]), "empty": b""}[damage])
    state = folder.load_checkpoint("last")
    assert state is not None
    assert state["epoch"] == 1


def test_when_no_checkpoint_is_whole_the_user_decides(folder):
    folder.save_checkpoint("last", {"hash": "a"})
    (folder.checkpoints / "last.pt").write_bytes(b"not ours")
    with pytest.raises(UserError, match="damaged or of another run"):
        folder.load_checkpoint("last")
    assert (folder.checkpoints / "last.pt").read_bytes() == b"not ours"


def test_a_checkpoint_of_other_settings_is_refused(folder):
    folder.save_checkpoint("last", {"hash": "a"})
    with pytest.raises(UserError, match="damaged or of another run"):
        folder.load_checkpoint("last", hash="b")


def test_metrics_are_cut_back_to_the_checkpoint(folder):
    known = folder.add_metrics(line(1))
    folder.add_metrics(line(2))
    folder.cut_metrics(known)
    folder.add_metrics(line(2))
    assert [json.loads(line)["epoch"] for line in folder.metrics.read_text().splitlines()] == [1, 2]


def test_a_metric_that_is_not_a_number_is_never_written(folder):
    with pytest.raises(ValueError, match="train_loss is nan, must be a finite number"):
        folder.add_metrics(dataclasses.replace(line(1), train_loss=float("nan")))
    assert not folder.metrics.exists() or not folder.metrics.read_bytes()


def test_writing_leaves_the_old_file_until_the_new_one_is_whole(tmp_path, monkeypatch):
    path = tmp_path / "record.json"
    write_whole(path, b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x10\x00\x00\x00\x00\x00\x00\x00{}"])
def test_damaged_tensors_are_named(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
        read_safetensors(tmp_path / "model.safetensors")


def test_masks_keep_bool_and_shape(folder):
    masks = {"conv.weight": torch.tensor([[True, False], [False, True]])}
    folder.save_tensors(folder.masks, masks)
    loaded = read_safetensors(folder.masks)["conv.weight"]
    assert loaded.dtype == torch.bool
    assert torch.equal(loaded, masks["conv.weight"])


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (None, "no run folder"),
        ({}, r"not a run folder: it has no recipe\.yaml"),
        ({"recipe.yaml": "a: 1"}, "is not finished"),
        ({"recipe.yaml": "a: 1", "record.json": "{"}, r"record\.json cannot be read"),
        ({"recipe.yaml": "a: 1", "record.json": "[]"}, "is not a record of spikeprune"),
    ],
)
def test_what_is_no_finished_run_is_refused(tmp_path, files, words):
    path = tmp_path / "run"
    if files is not None:
        path.mkdir()
        for name, text in files.items():
            (path / name).write_text(text)
    with pytest.raises(UserError, match=words):
        RunFolder.existing(path)


# ---- power cuts, full disks, things in the place of files -----------------------------------------------------------


def test_a_line_of_metrics_is_on_the_disk_before_a_checkpoint_knows_it(folder, monkeypatch):
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (synced.append(os.fstat(handle).st_size), fsync(handle)))
    assert folder.add_metrics(line(1)) in synced


def test_metrics_that_are_shorter_than_the_checkpoint_knows_are_refused_and_not_padded(folder):
    known = folder.add_metrics(line(1))
    with folder.metrics.open("r+b") as file:
        file.truncate(known - 3)
    before = folder.metrics.read_bytes()
    with pytest.raises(UserError, match=f"has {known - 3} bytes, but the checkpoint knows {known}: lines are lost"):
        folder.cut_metrics(known)
    assert folder.metrics.read_bytes() == before
    folder.metrics.unlink()
    with pytest.raises(UserError, match="has 0 bytes"):
        folder.cut_metrics(known)


def test_the_checkpoint_before_counts_where_the_last_one_does_not_fit(folder):
    folder.save_checkpoint("last", {"hash": "a", "metrics": 10})
    folder.save_checkpoint("last", {"hash": "a", "metrics": 20})
    found = folder.load_checkpoint("last", lambda state: state["metrics"] <= 15, hash="a")
    assert found == {"hash": "a", "metrics": 10}
    with pytest.raises(UserError, match="damaged or of another run"):
        folder.load_checkpoint("last", lambda state: False, hash="a")


@pytest.mark.parametrize("content", [[1, 2], {1: 2}, "text", torch.ones(2), {"other": 1}])
def test_a_checkpoint_with_a_right_checksum_and_other_contents_is_refused(folder, content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    folder.checkpoints.mkdir()
    payload = buffer.getvalue()
    (folder.checkpoints / "last.pt").write_bytes(_MAGIC + hashlib.sha256(payload).digest() + payload)
    with pytest.raises(UserError, match="damaged or of another run"):
        folder.load_checkpoint("last", hash="a")


def test_folders_in_the_place_of_files_are_named(folder):
    (folder.path / ".lock").mkdir()
    with pytest.raises(UserError, match=r"cannot open .*\.lock"), folder.locked():
        pass
    (folder.checkpoints / "last.pt").mkdir(parents=True)
    with pytest.raises(UserError, match="damaged or of another run"):
        folder.load_checkpoint("last")
    (folder.checkpoints / "last.pt").rmdir()
    folder.checkpoints.rmdir()
    folder.checkpoints.write_text("a file")
    with pytest.raises(UserError, match="checkpoint is a file"):
        folder.save_checkpoint("last", {})


@pytest.mark.parametrize(
    ("number", "status", "said"),
    [
        (errno.ENOSPC, 1, "the disk is full"), (errno.EROFS, 2, "cannot write"), (errno.EACCES, 2, "cannot write"),
        (errno.EIO, 1, "OSError"),
    ],
)  # fmt: skip
def test_a_full_or_read_only_disk_is_told_in_one_line(tmp_path, monkeypatch, capsys, number, status, said):
    from spikeprune.cli import main as cli
    from spikeprune.lab.train import run

    def fails(*_):
        raise OSError(number, os.strerror(number), str(tmp_path / "model.safetensors"))

    monkeypatch.setattr(run, "run", fails)
    assert cli.main(["run", "digits", "--out", str(tmp_path)]) == status
    lines = capsys.readouterr().err.splitlines()
    assert said in lines[0]
    assert len(lines) == (2 if number == errno.EIO else 1)
