"""The deep study's pictures and the abstract's table, from real runs of a small network and from committed files."""

import importlib
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from spikeprune.lab.study.compare import Comparison, collect, compare
from spikeprune.lab.sweep.sweep import read_sweep
from spikeprune.lab.train.run import run

ROOT = Path(__file__).parents[2]
SWEEP = """
model: mlp
epochs: 1
T: 1
batch: 32
precision: fp32
baseline: false
data: {name: digits, limit: 64, validation: 0}
prune: {begin: 0ep, end: 1ep, every: 0.5ep}
sparsities: [0.5]
seeds: [0]
reference: magnitude
arms:
  magnitude: {method: magnitude}
  random: {method: random, regrow_schedule: constant}
"""


@pytest.fixture(scope="module")
def modules():
    sys.path.insert(0, str(ROOT / "study"))
    yield importlib.import_module("figures"), importlib.import_module("abstract")
    sys.path.remove(str(ROOT / "study"))


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> Comparison:
    folder = tmp_path_factory.mktemp("deep")
    (folder / "small.yaml").write_text(SWEEP)
    sweep = read_sweep(str(folder / "small.yaml"), ["--out", str(folder / "runs")])
    assert len(sweep.tasks) == 2
    sweep.save()
    for task in sweep.tasks:
        run(task.recipe)
    runs, unfinished, reference = collect([sweep.file])
    return compare(runs, reference, unfinished)


def test_accuracy_over_sparsity_is_what_the_runs_say(modules, found):
    figures, _ = modules
    svg = figures.deep({"deep": found})["deep-weights"]
    for row in found.rows:
        assert f"{row.label}: {row.target:.4g}, {100 * row.values['accuracy'].mean:.4g}" in svg
    assert svg.count("<circle") >= 2
    assert set(figures.deep({"deep": found})) == {"deep-weights"}  # what there are no results for is left out
    assert figures.deep({}) == {}
    assert figures.section({}) == []


def test_accuracy_over_seconds_has_search_and_total(modules, found):
    figures, _ = modules
    svg = figures.deep({"deep_cost": found})["deep-cost"]
    for row in found.rows:
        for quantity in ("search_seconds", "seconds"):
            assert f"{row.label}: {row.values[quantity].mean:.4g}, " in svg
    assert "seconds until the masks are known" in svg
    assert "images/study-deep-cost.svg" in "\n".join(figures.section({"deep_cost": found}))


def test_what_regrowth_delivered_is_counted_in_real_runs(found):
    rows = {(row.label, row.target): row for row in found.rows}
    assert rows["magnitude", 0.5].delivered is None
    alive, regrown, filters = rows["random", 0.5].delivered
    assert 0 < alive <= regrown
    assert 0 < filters <= alive


def test_the_table_of_the_abstract_tells_results_and_what_was_not_run(modules, found, tmp_path):
    _, abstract = modules
    (tmp_path / "study" / "results").mkdir(parents=True)
    (tmp_path / "study" / "results" / "hours.txt").write_text("deep: 9 runs, 9 to make: about 8 h\ndeep_cost: 3 runs\n")
    said = "\n".join(abstract.section({"deep": found}, tmp_path))
    assert "| The abstract says" in said
    assert "- deep_cost: 3 runs" in said
    assert "- deep: 9 runs" not in said  # it has results
    assert "Not run: deep_more, deep_cifar100" in said
    assert re.search(r"deep: \d+\.\d\d of \d+ s go to", said) is None  # criticality was not among the arms
    empty = "\n".join(abstract.section({}, tmp_path))
    assert "nothing yet" in empty
    assert "- deep: 9 runs, 9 to make: about 8 h" in empty
    assert empty.count("\n|") == said.count("\n|")


def test_seconds_are_divided_by_those_of_criticality(modules, found):
    price = importlib.import_module("price")
    rows = {row.label: row for row in found.rows}
    as_base = replace(rows["magnitude"], label="criticality")
    cost = replace(found, rows=(as_base, rows["random"]))
    wanted = rows["random"].values["seconds"].mean / as_base.values["seconds"].mean
    search, total = price.ratios({"cost": cost}, "cost", "random")
    assert total == pytest.approx(wanted)
    assert search == pytest.approx(rows["random"].values["search_seconds"].mean / as_base.values["search_seconds"].mean)
    said = "\n".join(price.section({"cost": cost}))
    assert f"| {wanted:.2f} |" in said
    assert price.ratios({"cost": found}, "cost", "random") is None  # without criticality there is nothing to divide by
    assert price.section({"cost": found}) == []


def test_what_was_not_run_has_its_hours_and_their_sum(modules):
    left = importlib.import_module("left")
    hours = {"ablations": "75 runs: about 30 min with 1 worker", "rivals": "60 runs: about 1.5 h with 1 worker"}
    said = "\n".join(left.section((), hours))
    assert "Together they are 2 hours." in said
    assert "- rivals: 60 runs: about 1.5 h with 1 worker. It would tell: other published methods" in said
    assert "rivals" not in "\n".join(left.section(("rivals",), hours))
    assert left.section(hours, hours) == []
    assert left.hours_of("3 runs") is None


def test_the_clock_of_the_study_is_cpu_time():
    words = [sys.executable, str(ROOT / "study" / "clock.py"), "list", "methods"]
    code = f"import runpy, sys, time; sys.argv = {words[1:]!r}; runpy.run_path(sys.argv[0]); "
    done = subprocess.run(
        [sys.executable, "-c", code + "print(time.perf_counter is time.process_time)"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert done.stdout == "True\n"


def test_every_part_of_the_study_has_its_file(modules):
    order = importlib.import_module("page").ORDER
    for name in order:
        assert (ROOT / "study" / f"{name}.yaml").is_file(), name
    sweeps = {
        name: read_sweep(str(ROOT / "study" / f"{name}.yaml"), ["--data.root", "x"]) for name in ("deep", "deep_lr")
    }
    assert len(sweeps["deep"].tasks) == 2 * 3 * 6  # networks, seeds, arms with dense
    assert {task.recipe.seed for task in sweeps["deep_lr"].tasks} == {100}  # a seed that the study does not use


def test_features_and_sizes_are_those_of_both_analyses(modules):
    _, abstract = modules
    cells = " ".join((*abstract.alike(ROOT), *abstract.picks({}, ROOT)))
    for folder in abstract.ANALYSES:
        seeds = json.loads((ROOT / "study" / "results" / folder / "analysis.json").read_text())["seeds"]
        cosines = seeds["consistency"]["mean_cosine_centred"]["each"]
        sizes = seeds["importance"]["regrown"]["each"]
        assert f"centred cosine {sum(cosines) / len(cosines):.4f} with regeneration" in cells
        assert f"have {sum(sizes) / len(sizes):.2f} of their layer's largest weight" in cells
