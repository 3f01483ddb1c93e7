"""A run killed again and again ends as an undisturbed one: masks, weights, record and metrics, bit for bit."""

import json
from pathlib import Path

import killed_runs
import pytest

from forked import Forked

_EXACT = ["model.safetensors", "masks.safetensors", "dense.safetensors", "metrics.jsonl"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs")
    done = Forked(lambda: killed_runs.main(out)).wait()
    assert done.status == 0, done.stderr[-2000:]
    return out


def _only(folder: Path) -> Path:
    entries = list(folder.iterdir())
    assert len(entries) == 1, f"one run adds one entry to --out, found {entries}"
    return entries[0]


@pytest.mark.parametrize("chain", ["by-epoch", "by-step"])
def test_killed_runs_end_bit_for_bit_alike(runs, chain):
    undisturbed, killed = _only(runs / "undisturbed"), _only(runs / chain)
    assert killed.name == undisturbed.name
    for name in _EXACT:
        assert (killed / name).read_bytes() == (undisturbed / name).read_bytes(), name
    one, other = (json.loads((folder / "record.json").read_text()) for folder in (undisturbed, killed))
    for key in ("dense", "pruned", "rounds", "sparsity", "density", "data", "seed", "best_epoch"):
        assert one[key] == other[key], key


def test_metrics_hold_one_line_an_epoch_and_phase(runs):
    lines = [json.loads(line) for line in (_only(runs / "undisturbed") / "metrics.jsonl").read_text().splitlines()]
    assert [(line["phase"], line["epoch"]) for line in lines] == [
        ("dense", 1),
        ("dense", 2),
        ("pruned", 1),
        ("pruned", 2),
    ]
    assert lines[-1]["sparsity"] == pytest.approx(0.95, abs=1e-4)


def test_the_record_has_every_key_of_the_contract(runs):
    record = json.loads((_only(runs / "undisturbed") / "record.json").read_text())
    assert {"schema", "settings", "seed", "environment", "data", "dense", "pruned", "sparsity", "density"} <= set(
        record
    )
    assert {"rounds", "cost", "status"} <= set(record)
    figures = {"accuracy", "parameters", "alive", "bytes", "macs", "synops", "energy_pj", "firing_rate"}
    assert figures <= set(record["dense"])
    assert figures <= set(record["pruned"])
    for event in record["rounds"]:
        assert {"step", "target", "kept", "regrown", "rescued", "survived"} <= set(event)
    assert record["rounds"][-1]["survived"] is None
    cost = {"epochs", "seconds", "train_macs", "pruning_seconds", "search_epochs", "search_seconds"}
    assert cost | {"train_macs_effective"} <= set(record["cost"])
    assert record["pruned"]["alive"] == record["rounds"][-1]["kept"]
    assert record["sparsity"] == 1 - record["pruned"]["alive"] / record["dense"]["alive"]
    assert record["data"]["counts"] == {"train": 108, "validation": 12, "test": 64}
    # Two passes through the network backward for one forward, over 2 epochs of 108 images.
    assert record["cost"]["train_macs"] == pytest.approx(3 * 2 * 108 * record["dense"]["macs"])
    assert 0 < record["cost"]["train_macs_effective"] < record["cost"]["train_macs"]


def test_a_finished_run_keeps_whole_files_only(runs):
    folder = _only(runs / "by-step")
    assert {path.name for path in (folder / "checkpoint").iterdir()} == {"last.pt", "best.pt"}
    assert not list(folder.rglob("*.part"))
