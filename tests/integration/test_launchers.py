"""Sweeps of real, tiny runs under torchrun (two processes here), and as tasks of Ray (a stand-in with its calls)."""

import subprocess
import sys
import types

import pytest

from forked import ranks
from spikeprune.cli.main import main
from spikeprune.core.errors import InvalidValue
from spikeprune.lab.study.ranks import this_rank
from spikeprune.lab.sweep.sweep import read_sweep

FILE = """
model: mlp
epochs: 1
batch: 16
T: 2
precision: fp32
data: {name: digits, limit: 64, test_limit: 32}
prune: {begin: 0ep, end: 0.5ep, every: 0.25ep}
methods: [magnitude]
sparsities: [0.5]
seeds: [0, 1]
"""
RANKED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK")


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(FILE)
    return path


def test_two_ranks_share_the_runs_and_one_process_prints_the_table(file, tmp_path):
    """One of four runs fails; the process that made it ends with status 1, after the others' work and the table.

    test_together.py has torchrun itself.
    """
    out = tmp_path / "runs"
    words = ["sweep", str(file), "--out", str(out), "--lr", "0.1,1e30", "--baseline", "false"]
    done = ranks(lambda rank: main(words))
    assert sorted(one.status for one in done) == [0, 1]
    said = done[0].stdout + done[1].stdout
    assert said.count("2 runs, 0 of them finished before") == 2
    assert said.count("Rows by mean accuracy") == 1
    assert len(list(out.glob("tiny-*/record.json"))) == 2
    assert len(list(out.glob("sweep-tiny-*.json"))) == 1
    assert "are not numbers after step" in said
    assert sum(line.startswith(f"{out}/sweep-tiny-") for line in said.splitlines()) == 1


def test_a_rank_is_what_torchrun_says(monkeypatch):
    for name in RANKED:
        monkeypatch.delenv(name, raising=False)
    assert this_rank() is None
    for name, value in {"RANK": "1", "WORLD_SIZE": "3", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    rank = this_rank()
    assert rank is not None
    assert (rank.number, rank.of) == (1, 3)
    monkeypatch.setenv("RANK", "3")
    with pytest.raises(InvalidValue, match="0 <= RANK < WORLD_SIZE"):
        this_rank()
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert this_rank() is None


class _Ray(types.ModuleType):
    """Ray's calls that the launcher makes, carried out at once; each submission is kept."""

    def __init__(self, gpus=0):
        super().__init__("ray")
        self.gpus, self.submitted, self.results = gpus, [], {}

    def init(self, *, ignore_reinit_error, log_to_driver):
        self.submitted.clear()

    def cluster_resources(self):
        return {"CPU": 2.0} | ({"GPU": float(self.gpus)} if self.gpus else {})

    def remote(self, function):
        ray = self

        class Remote:
            def options(self, *, num_cpus, num_gpus):
                self.wanted = (num_cpus, num_gpus)
                return self

            def remote(self, *arguments):
                ray.submitted.append((self.wanted, arguments))
                reference = f"reference {len(ray.submitted)}"
                try:
                    ray.results[reference] = function(*arguments)
                except OSError as error:
                    ray.results[reference] = error
                return reference

        return Remote()

    def wait(self, references, *, num_returns):
        return references[:num_returns], references[num_returns:]

    def get(self, reference):
        found = self.results.pop(reference)
        if isinstance(found, Exception):
            raise found
        return found


def test_ray_makes_the_runs_and_what_fails_is_told(file, tmp_path, monkeypatch, capsys):
    ray = _Ray()
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setenv("SPIKEPRUNE_DATA", "somewhere")
    monkeypatch.chdir(tmp_path)
    words = ["sweep", str(file), "--launcher", "ray", "--threads", "1", "--baseline", "false"]
    assert main([*words, "--lr", "0.1,1e30", "--seeds", "0"]) == 1
    printed = capsys.readouterr()
    assert "1 of 2 runs failed" in printed.err
    assert len(list((tmp_path / "runs").glob("tiny-*/record.json"))) == 1
    assert [wanted for wanted, _ in ray.submitted] == [(1, 0), (1, 0)]
    recipe, threads, folder, environment = ray.submitted[0][1]
    assert (recipe.out, threads, folder) == (str(tmp_path / "runs"), 1, str(tmp_path))
    assert environment["SPIKEPRUNE_DATA"] == "somewhere"
    assert main([*words, "--seeds", "0"]) == 0
    assert ray.submitted == []  # finished before


def test_ray_gives_a_run_a_gpu_where_there_are_some_and_it_may(file, monkeypatch):
    from spikeprune.lab.sweep import workers

    ray = _Ray(gpus=2)
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(workers, "_carry_out_there", lambda *_: "")
    for device, gpus in {"auto": 1, "cuda:0": 1, "cpu": 0}.items():
        tasks = read_sweep(str(file), ["--device", device, "--seeds", "0", "--baseline", "false"]).tasks
        assert workers.work(tasks, 1, 1, lambda done: None, "ray") == []
        assert ray.submitted[-1][0] == (1, gpus)


def test_a_ray_task_that_dies_is_a_failed_run(file, monkeypatch):
    from spikeprune.lab.sweep import workers

    def die(*_):
        raise OSError("the worker died")

    monkeypatch.setitem(sys.modules, "ray", _Ray())
    monkeypatch.setattr(workers, "_carry_out_there", die)
    tasks = read_sweep(str(file), ["--seeds", "0", "--baseline", "false"]).tasks
    (failed,) = workers.work(tasks, 1, 1, lambda done: None, "ray")
    assert failed.message == "OSError: the worker died"


def test_without_ray_the_launcher_says_how_to_get_it(file, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    words = ["sweep", str(file), "--out", str(file.parent / "runs"), "--launcher"]
    assert main([*words, "ray"]) == 2
    assert "pip install 'spikeprune[ray]'" in capsys.readouterr().err
    assert main([*words, "slurm"]) == 2
    assert "--launcher must be local or ray" in capsys.readouterr().err


def test_the_package_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "spikeprune", "--version"], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.startswith("spikeprune ")
