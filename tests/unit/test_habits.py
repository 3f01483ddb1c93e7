"""Loggers and habits: TensorBoard, a listener for epochs, a page of a running run, and runs on a model hub, offline."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from records import write_run
from spikeprune.cli import report
from spikeprune.cli.main import main
from spikeprune.lab.page.charts import styles
from spikeprune.lab.page.live import watch
from spikeprune.lab.study.compare import collect, compare
from spikeprune.lab.study.conclude import conclusions
from spikeprune.lab.train import hub
from spikeprune.lab.train.folder import RunFolder

TINY = ["--epochs", "2", "--data.limit", "64", "--batch", "32", "--model", "digits-conv-small", "--baseline", "false"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """One tiny run with TensorBoard and a listener, and what the listener heard."""
    where = tmp_path_factory.mktemp("habits")
    (where / "listening_here.py").write_text(
        "heard = []\ndef hear(epoch, epochs):\n    heard.append((epoch, epochs))\n"
    )
    sys.path.insert(0, str(where))
    try:
        words = ["--tensorboard", "true", "--on-epoch", "listening_here:hear", "--out", str(where / "runs")]
        assert main(["run", "digits", *TINY, *words]) == 0
    finally:
        sys.path.remove(str(where))
    (folder,) = (where / "runs").iterdir()
    return RunFolder(folder), sys.modules["listening_here"].heard


def test_a_listener_hears_each_epoch(made):
    _, heard = made
    assert [(epoch.phase, epoch.epoch, epochs) for epoch, epochs in heard] == [("pruned", 1, 2), ("pruned", 2, 2)]


def test_a_listener_that_is_none_is_refused(capsys):
    assert main(["run", "digits", "--on-epoch", "json:__name__"]) == 2
    assert "--on-epoch json:__name__ must be a function of (epoch, epochs), got str" in capsys.readouterr().err
    assert main(["run", "digits", "--on-epoch"]) == 2
    assert "--on-epoch needs a value" in capsys.readouterr().err


def test_tensorboard_has_rates_sparsity_and_mask_updates_of_each_layer(made):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, _ = made
    events, updates = (EventAccumulator(str(folder.path / "tensorboard" / n)) for n in ("pruned", "mask updates"))
    for each in (events, updates):
        each.Reload()
    record = folder.read_record()
    tags = events.Tags()
    assert {"val_accuracy", "sparsity/head"} <= set(tags["scalars"])
    assert [tag for tag in tags["scalars"] if tag.startswith("firing rate/")]
    assert "alive weights/head" in tags["histograms"]
    kept = [(event.step, event.value) for event in updates.Scalars("mask update, kept/head")]  # each once
    layers = [(update.step, update.layers["head.weight"].kept) for update in record.rounds if update.layers]
    assert kept == layers
    assert len(kept) == len(record.rounds) >= 1


def test_logging_changes_no_number_of_the_run(made, tmp_path):
    folder, _ = made
    assert main(["run", "digits", *TINY, "--out", str(tmp_path)]) == 0
    (plain,) = tmp_path.iterdir()
    assert RunFolder(plain).model.read_bytes() == folder.model.read_bytes()


def test_a_running_run_has_a_live_page_that_ends_with_it(made, tmp_path):
    folder, _ = made
    running = RunFolder(tmp_path / "run")
    running.path.mkdir()
    running.recipe.write_bytes(folder.recipe.read_bytes())
    live = watch(running.path, 0.5, most=1)
    assert "No epoch has ended yet" in live.read_text()
    running.metrics.write_bytes(folder.metrics.read_bytes())
    page = watch(running.path, 0.5, most=1).read_text()
    assert 'http-equiv="refresh"' in page
    assert "Pruned, epoch 2 of 2" in page
    assert page.count("<figure>") == 3
    assert f'class="m{styles(["criticality"])["criticality"]}"' in page  # as in comparisons
    running.record.write_bytes(folder.record.read_bytes())
    assert watch(running.path, 0.5) == running.report
    assert not live.exists()


def test_only_a_run_folder_is_watched(tmp_path, capsys):
    assert main(["report", str(tmp_path), "--watch"]) == 2
    assert "no run folder" in capsys.readouterr().err
    assert main(["report", "a", "b", "--watch"]) == 2
    assert "--watch follows one run, got 2" in capsys.readouterr().err


def test_report_of_two_runs_compares_them(tmp_path):
    for accuracy, method in ((0.8, "magnitude"), (0.9, "random")):
        write_run(tmp_path, accuracy, f"method={method}", "sparsity=0.9")
    page = report._compared(tmp_path, [str(path) for path in sorted(tmp_path.iterdir())])
    assert page == tmp_path / "comparison.html"
    text = page.read_text().replace("\u00a0", " ")
    assert "At 90 % sparsity random leads with 90.00 %" in text
    assert "Comparison of 2 runs: " in text
    assert "<dt>command</dt><dd>spikeprune report /" in text.partition("<section>")[0]  # above the first chart
    assert "A mark is a method." in text  # one sparsity and one seed: no line, no dots


def test_a_dense_network_beside_a_pruned_one_is_no_run_of_its_own_on_the_page(tmp_path):
    folder = tmp_path / f"hand-{write_run(tmp_path, 0.8, 'method=magnitude', 'sparsity=0.9', dense_seconds=3.0)}"
    record = json.loads((folder / "record.json").read_text())
    record["dense"]["accuracy"] = 0.9
    (folder / "record.json").write_text(json.dumps(record))
    text = report._compared(tmp_path, [str(folder)]).read_text().replace("\u00a0", " ")
    assert "10.00 points below dense" in text
    assert "Comparison of 1 run: " in text


def test_an_arm_without_rivals_does_not_lead(tmp_path):
    write_run(tmp_path, 0.8, "method=magnitude", "sparsity=0.9")
    assert conclusions(compare(collect([tmp_path])[0]))[0] == "At 90 % sparsity magnitude reaches 80.00 %"


@pytest.mark.parametrize(
    ("reference", "said"),
    [("dense", "are level at 80.00 %, 10.00 points below dense"), ("magnitude", "are level at 80.00 %")],
)
def test_a_comparison_that_ends_level_names_no_leader(tmp_path, reference, said):
    write_run(tmp_path, 0.9, "method=dense", "sparsity=0")
    for accuracy, method in ((0.8, "magnitude"), (0.7, "set"), (0.8, "random")):
        write_run(tmp_path, accuracy, f"method={method}", "sparsity=0.9")
    headline = conclusions(compare(collect([tmp_path])[0], reference))[0]
    assert headline in {f"At 90 % sparsity {two} {said}" for two in ("magnitude and random", "random and magnitude")}


def test_a_run_goes_to_a_hub_and_back_as_it_was(made, tmp_path, capsys, monkeypatch):
    folder, _ = made
    pushed: dict[str, object] = {}

    class Api:
        def create_repo(self, repository, private, exist_ok):
            pushed.update(repository=repository, private=private)

        def upload_folder(self, repo_id, folder_path):
            pushed["files"] = {p.name: p.read_bytes() for p in Path(folder_path).iterdir()}
            return f"https://hub/{repo_id}"

    def snapshot_download(repository, allow_patterns):
        (tmp_path / "cache").mkdir()
        for name, content in pushed["files"].items():
            if name in allow_patterns:
                (tmp_path / "cache" / name).write_bytes(content)
        return str(tmp_path / "cache")

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(HfApi=Api, snapshot_download=snapshot_download))
    assert main(["push", str(folder.path), "me/digits", "--private"]) == 0
    assert capsys.readouterr().out == "https://hub/me/digits\n"
    assert (pushed["repository"], pushed["private"]) == ("me/digits", True)
    card = pushed["files"]["README.md"].decode()
    assert card.startswith("---\nlibrary_name: spikeprune\n")
    assert f"| accuracy | not trained | {folder.read_record().accuracy:.2%} |" in card
    assert not [name for name in pushed["files"] if name.endswith((".pt", ".py", ".pkl"))]
    assert main(["pull", "me/digits", "--out", str(tmp_path / "runs")]) == 0
    back = RunFolder.existing(capsys.readouterr().out.strip())
    for name in ("model.safetensors", "masks.safetensors", "record.json", "recipe.yaml"):
        assert (back.path / name).read_bytes() == (folder.path / name).read_bytes()
    assert main(["pull", "me/digits2", "--out", str(tmp_path / "runs")]) != 0


def test_what_would_be_pushed_can_be_looked_at_and_pulled_from_there(made, tmp_path, capsys):
    folder, _ = made
    assert main(["push", str(folder.path), "--to", str(tmp_path / "staged")]) == 0
    assert (tmp_path / "staged" / "README.md").is_file()
    assert main(["push", str(folder.path), "--to", str(tmp_path / "staged")]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert main(["pull", str(tmp_path / "staged"), "--out", str(tmp_path / "runs")]) == 0


def test_a_strangers_record_cannot_choose_where_it_is_written(made, tmp_path, capsys):
    folder, _ = made
    staged = hub.stage(folder, tmp_path / "staged")
    record = json.loads((staged / "record.json").read_text())
    (staged / "record.json").write_text(json.dumps(record | {"name": "../../evil"}))
    assert main(["pull", str(staged), "--out", str(tmp_path / "runs")]) == 0
    (made_here,) = (tmp_path / "runs").iterdir()
    assert made_here.name.startswith("------evil-")
    (staged / "masks.safetensors").unlink()
    assert main(["pull", str(staged), "--out", str(tmp_path / "again")]) == 2
    assert "it lacks masks.safetensors" in capsys.readouterr().err


def test_push_says_what_it_needs(made, capsys, monkeypatch):
    folder, _ = made
    assert main(["push", str(folder.path)]) == 2
    assert "push takes a repository, owner/name, or --to DIR" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert main(["push", str(folder.path), "me/x"]) == 2
    assert "pip install 'spikeprune[hub]'" in capsys.readouterr().err
