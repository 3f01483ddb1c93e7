"""Sweeps of real, tiny runs: killed at random and continued, made by several processes, by a job array's tasks."""

import json
import multiprocessing
import os
import random
import re
import signal
import time
from pathlib import Path

import killed_sweeps
import pytest

from forked import Forked
from spikeprune.cli.main import main

FILE = """
model: mlp
epochs: 2
batch: 16
T: 2
precision: fp32
data: {name: digits, limit: 100, test_limit: 64}
prune: {begin: 0ep, end: 1ep, every: 0.25ep}
methods: [criticality]
sparsities: [0.5]
seeds: [0, 1]
"""


def _table(out: Path) -> list[dict]:
    """The rows of `compare --json`, without the times of day's work."""
    from spikeprune.lab.study.compare import collect, compare

    found = compare(collect(sorted(out.glob("sweep-*.json")))[0]).as_dict()
    for row in found["rows"]:
        row["values"] = {name: value for name, value in row["values"].items() if "seconds" not in name}
    return json.loads(json.dumps(found["rows"]))


@pytest.fixture(scope="module")
def sweeps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sweeps")
    (out / "tiny.yaml").write_text(FILE)
    done = Forked(lambda: killed_sweeps.main(out)).wait()
    assert done.status == 0, done.stderr[-2000:]
    return out


def test_a_sweep_killed_five_times_ends_with_the_same_table(sweeps):
    undisturbed = _table(sweeps / "undisturbed")
    assert _table(sweeps / "killed") == undisturbed
    assert len(undisturbed) == 2
    assert all(row["seeds"] == [0, 1] for row in undisturbed)
    assert len({row["values"]["synops"]["mean"] for row in undisturbed}) > 1


def test_one_run_folder_a_run_and_one_list(sweeps):
    for out in ("undisturbed", "killed"):
        entries = sorted(path.name for path in (sweeps / out).iterdir())
        assert sum(name.startswith("sweep-tiny-") for name in entries) == 1
        assert sum(name.startswith("tiny-") for name in entries) == len(entries) - 1 == 4


def test_a_finished_sweep_makes_no_run_again(sweeps, capsys):
    out = sweeps / "undisturbed"
    before = {path: path.stat().st_mtime_ns for path in out.glob("tiny-*/*.json")}
    assert main(["sweep", str(sweeps / "tiny.yaml"), "--out", str(out)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "4 runs, 4 of them finished before"
    assert Path(printed[-1]).parent == out
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_the_tasks_of_a_job_array_make_the_same_table(sweeps):
    """Each task as its job would run it, in a process of its own, one after the other."""
    assert _table(sweeps / "array") == _table(sweeps / "undisturbed")


def test_a_run_that_fails_does_not_stop_the_others(sweeps, capsys):
    out = sweeps / "failing"
    words = ["sweep", str(sweeps / "tiny.yaml"), "--out", str(out), "--lr", "0.1,1e30", "--methods", "magnitude"]
    assert main([*words, "--seeds", "0", "--baseline", "false"]) == 1
    printed = capsys.readouterr()
    assert "1 of 2 runs failed" in printed.err
    assert len(list(out.glob("tiny-*/record.json"))) == 1


def test_workers_make_the_same_table_and_leave_with_their_parent(sweeps, tmp_path):
    """Two processes; the parent is killed once in the middle, after which no worker goes on."""
    out = tmp_path / "workers"
    words = ["sweep", str(sweeps / "tiny.yaml"), "--workers", "2", "--out", str(out)]
    killed = Forked(lambda: main(words), {"OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 240
    while not list(out.glob("tiny-*/record.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(killed.pid, signal.SIGKILL)
    assert killed.wait().status == -signal.SIGKILL, "the sweep ended before its first record was seen"

    def go_on():
        context = multiprocessing.get_context("fork")  # new Pythons were tried above; these workers are there at once
        multiprocessing.get_context = lambda _: context
        return main(words)

    done = Forked(go_on).wait()
    assert done.status == 0, done.stderr[-2000:]
    assert re.search(r"^criticality, sparsity 0.5, seed 1: pruned epoch \d/2 ", done.stdout, re.MULTILINE)
    assert _table(out) == _table(sweeps / "undisturbed")


def test_kills_fall_at_random_but_the_same_moments(sweeps):
    """The moments that killed_sweeps.py draws: five, each within the first run that is left."""
    draw = random.Random(6)
    assert json.loads((sweeps / "moments.json").read_text()) == [draw.randint(2, 18) for _ in range(5)]
