"""Analyses of real, tiny runs: every key is there, nothing is nan, different runs differ, the files agree with it."""

import json
import re

import pytest
import torch

from spikeprune.cli.main import main
from spikeprune.study.analyze import analyze
from spikeprune.train.folder import RunFolder, read_safetensors
from spikeprune.train.recipe import load
from spikeprune.train.run import run

TINY = ["--model", "mlp", "--epochs", "2", "--data.limit", "150", "--batch", "16", "--T", "3", "--sparsity", "0.5"]
TINY += ["--prune.begin", "0ep", "--prune.end", "0.5ep", "--prune.every", "0.125ep"]
GROWING = ["--method", "criticality", "--regrow_schedule", "constant", "--candidates", "new", "--baseline", "true"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    out = str(tmp_path_factory.mktemp("analysed"))
    made = {}
    for name, words in {"grown": GROWING, "plain": ["--method", "magnitude", "--baseline", "false"]}.items():
        made[name] = run(load("digits", [*TINY, *words, "--precision", "fp32", "--out", out])).path
    return made


def _numbers(value, at=""):
    """Every number of nested JSON with its place."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _numbers(inner, f"{at}.{key}")
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from _numbers(inner, f"{at}[{i}]")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield at, value


def test_the_run_knows_which_of_its_weights_were_regrown(runs):
    folder = RunFolder(runs["grown"])
    regrown, masks = read_safetensors(folder.regrown), read_safetensors(folder.masks)
    assert all(mask.dtype == torch.bool and not (mask & ~masks[name]).any() for name, mask in regrown.items())
    last = folder.read_record()["rounds"][-1]["regrown"]
    assert sum(int(mask.sum()) for mask in regrown.values()) >= last > 0
    assert not RunFolder(runs["plain"]).regrown.exists()


def test_one_run_tells_what_one_run_can(runs, capsys):
    assert main(["analyze", str(runs["grown"]), "--images", "100"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in printed[:4]] == ["survival", "feature cosine", "importance", "loss gap"]
    assert not any(re.search(r"\bnan\b|\binf\b|not applicable", line) for line in printed[:4])
    found = json.loads((runs["grown"] / "analysis.json").read_text())
    assert {"survival", "consistency", "importance", "overfitting", "criticality"} <= set(found)
    record = RunFolder(runs["grown"]).read_record()
    regrown = read_safetensors(RunFolder(runs["grown"]).regrown)
    assert found["survival"]["regrown"] == sum(event["regrown"] for event in record["rounds"])
    assert found["survival"]["alive_at_end"] == sum(int(mask.sum()) for mask in regrown.values())
    counts = found["importance"]["regrown_count"] + found["importance"]["others_count"]
    assert counts == record["pruned"]["alive"]
    for state in ("before_pruning", "after_pruning", "after_regeneration"):
        assert found["criticality"][state]["images"] == 100
    different = {json.dumps(found["criticality"][s]["branching"]) for s in found["criticality"]["states"]}
    assert len(different) == 3
    assert "<figure>" in (runs["grown"] / "analysis.html").read_text()


def test_against_another_run_and_what_that_one_lacks(runs, capsys):
    assert main(["analyze", str(runs["plain"]), "--against", str(runs["grown"]), "--images", "100"]) == 0
    printed = capsys.readouterr().out
    assert "importance: not applicable" in printed
    assert "survival: not applicable" in printed
    assert re.search(r"survival, criticality seed 0: [\d,]+ regrown", printed)
    found = json.loads((runs["plain"] / "analysis.json").read_text())
    assert found["importance"] is None
    assert found["criticality"]["before_pruning"] is None
    only = found["against"][0]["importance_of_difference"]
    mine, theirs = (read_safetensors(RunFolder(runs[name]).masks) for name in ("plain", "grown"))
    assert only["only_this_count"] == sum(int((mine[n] & ~theirs[n]).sum()) for n in mine)
    assert "nan" not in (runs["plain"] / "analysis.html").read_text()


def test_different_runs_give_different_numbers(runs):
    one, other = (dict(_numbers(analyze(runs[name], images=60))) for name in ("grown", "plain"))
    for part in (
        ".consistency.mean_cosine",
        ".overfitting.final_gap",
        ".criticality.after_regeneration.branching.pooled",
    ):
        assert one[part] != other[part], part
    again = dict(_numbers(analyze(runs["grown"], images=60)))
    assert again == one


def test_the_authors_normalisation_is_another_feature(runs):
    plain = analyze(runs["grown"], images=60)["consistency"]
    turned = analyze(runs["grown"], images=60, features="inverted-min-max")["consistency"]
    assert turned["mean_cosine"] != plain["mean_cosine"]


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--features", "mean"], "--features must be rate or"), (["--images", "0"], "--images must be at least 1")],
)
def test_wrong_options_are_named(runs, words, message, capsys):
    assert main(["analyze", str(runs["plain"]), *words]) == 2
    assert message in capsys.readouterr().err


def test_no_run_folder_is_status_2(tmp_path, capsys):
    assert main(["analyze", str(tmp_path)]) == 2
    assert "is not a run folder" in capsys.readouterr().err
