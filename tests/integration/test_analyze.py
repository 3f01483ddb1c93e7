"""Analyses of real, tiny runs: every key is there, nothing is nan, different runs differ, the files agree with it."""

import json
import re

import pytest
import torch

from spikeprune.cli.main import main
from spikeprune.lab.recipe import load
from spikeprune.lab.study.analyze import analyze
from spikeprune.lab.train.folder import RunFolder, read_safetensors
from spikeprune.lab.train.run import run

TINY = ["--model", "mlp", "--epochs", "2", "--data.limit", "150", "--batch", "16", "--T", "3", "--sparsity", "0.5"]
TINY += ["--data.test_limit", "100", "--prune.begin", "0ep", "--prune.end", "0.5ep", "--prune.every", "0.125ep"]
GROWING = ["--method", "criticality", "--regrow_schedule", "constant", "--candidates", "new", "--baseline", "true"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    out = str(tmp_path_factory.mktemp("analysed"))
    plain = ["--method", "magnitude", "--baseline", "false"]
    arms = {"grown": GROWING, "plain": plain, "grown 1": [*GROWING, "--seed", "1"], "plain 1": [*plain, "--seed", "1"]}
    return {
        name: run(load("digits", [*TINY, *words, "--precision", "fp32", "--out", out])).path
        for name, words in arms.items()
    }


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


def test_several_runs_are_averaged_and_paired_by_seed(runs, capsys):
    """Seeds in any order; every number is that of the run's own analysis; each run's folder has the same averages."""
    words = ["analyze", runs["grown 1"], runs["grown"], "--against", runs["plain"], runs["plain 1"], "--images", "60"]
    assert main(list(map(str, words))) == 0
    printed = capsys.readouterr().out
    assert "seeds: 0, 1; mean ± standard deviation" in printed
    assert re.search(r"feature cosine, magnitude \(n = 2\): 0\.\d{4} ± 0\.\d{4} train to test", printed)
    found, other = (json.loads((runs[name] / "analysis.json").read_text()) for name in ("grown 1", "grown"))
    seeds = found["seeds"]
    assert other["seeds"] == seeds
    assert (seeds["seeds"], seeds["runs"]) == ([0, 1], [runs["grown"].name, runs["grown 1"].name])
    alone = {
        seed: json.loads(json.dumps(analyze(runs[name], images=60))) for seed, name in ((0, "grown"), (1, "grown 1"))
    }
    spread = seeds["consistency"]["mean_cosine"]
    assert spread["each"] == [alone[seed]["consistency"]["mean_cosine"] for seed in (0, 1)]
    assert spread["mean"] == pytest.approx(sum(spread["each"]) / 2)
    assert [a["run"] for a in found["against"]] == [runs["plain 1"].name]
    (arm,) = seeds["against"]
    assert (arm["arm"], arm["seeds"], arm["survival"]["regrown"]["mean"]) == ("magnitude", [0, 1], 0)
    difference = arm["difference"]["accuracy"]
    accuracies = {name: RunFolder(path).read_record()["pruned"]["accuracy"] for name, path in runs.items()}
    expected = [accuracies["grown"] - accuracies["plain"], accuracies["grown 1"] - accuracies["plain 1"]]
    assert difference["each"] == pytest.approx(expected)
    assert arm["importance_of_difference"]["only_this"]["n"] == 2
    page = (runs["grown 1"] / "analysis.html").read_text().replace("\N{NO-BREAK SPACE}", " ")
    assert "n = 2 (criticality), n = 2 (magnitude); bars: standard deviation" in page
    assert not re.search(r"\bnan\b|\binf\b|\bNone\b", page + printed)


@pytest.mark.parametrize(
    ("names", "against", "message"),
    [
        (["grown", "plain"], [], "must differ in the seed alone"),
        (["grown", "grown"], [], "have the same seed"),
        (["grown", "grown 1"], ["plain", "plain"], "have the same seed"),
    ],
)
def test_runs_that_cannot_be_averaged_are_named(runs, names, against, message, capsys):
    words = [str(runs[name]) for name in names]
    words += ["--against", *(str(runs[name]) for name in against)] if against else []
    assert main(["analyze", *words]) == 2
    assert message in capsys.readouterr().err


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
