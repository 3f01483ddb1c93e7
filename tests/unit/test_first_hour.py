"""What a newcomer sees in the first hour: each test is the right text or number of a command that once misled."""

import dataclasses
import functools
import importlib
import inspect
import io
import itertools
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from spikingjelly.activation_based import neuron
from torch import nn

import spikeprune as sp
from records import write_run
from spikeprune.cli import bench, demo, sweep
from spikeprune.cli import main as cli
from spikeprune.core.errors import InvalidValue, unknown
from spikeprune.core.schedule import _check_steps, turnover_steps
from spikeprune.count import table
from spikeprune.count.layers import Table, floor_notes
from spikeprune.host import catalogue
from spikeprune.lab.page import charts, figures
from spikeprune.lab.recipe import load
from spikeprune.lab.recipe.timetable import lay_out
from spikeprune.lab.study import tables
from spikeprune.lab.study.collected import collect
from spikeprune.lab.study.compare import Arm, Block, Comparison
from spikeprune.lab.study.significance import paired, summarize
from spikeprune.lab.sweep.glance import count_runs
from spikeprune.lab.sweep.sweep import read_sweep
from spikeprune.lab.train import device
from spikeprune.lab.train.folder import RunFolder, folder_of
from spikeprune.lab.train.network import connect
from spikeprune.lab.train.notes import chance_note, energy_note, run_notes, starved_notes, starved_of
from spikeprune.lab.train.progress import ProgressBar, epoch_line
from spikeprune.record.base import Impossible
from spikeprune.record.bench import BenchInputs, BenchRecord, EngineTime, TimedThreads
from spikeprune.record.epoch import Epoch
from spikeprune.record.statistics import LayerOperations, NetworkStatistics, NeuronStatistics

ROOT = Path(__file__).parents[2]


def counted() -> "sp.Counts":
    net = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(3, 2, bias=False))
    masks = {"0.weight": torch.eye(3, 4).bool()}
    return sp.count(net, [torch.ones(5, 4)], masks)


def test_counts_print_as_a_table():
    lines = str(counted()).splitlines()
    assert lines[0].split() == [
        "layer",
        "weights",
        "alive",
        "density",
        "MACs",
        "SynOps",
        "dense",
        "SynOps",
        "input",
        "rate",
    ]
    assert lines[1].split() == ["0", "12", "3", "0.2500", "3", "3", "12", "1.0000"]
    assert lines[3].split() == ["total", "18", "9", "0.5000", "9", "9", "18"]
    assert "mean of 5" in lines[4]


def test_counts_are_a_table_in_notebooks_too():
    page = counted()._repr_html_()
    assert page.startswith("<table>")
    assert all(cell in page for cell in ("<td>0.2500</td>", "<th>SynOps</th>"))


def test_beside_the_energy_stands_what_a_chip_adds():
    # Layer 0 has 3 alive weights for 3 neurons, all inputs non-zero: 1 event a neuron and step, below 2.2.
    assert "layers below 2.2 (alive fan-in x input spike rate; constants of Loihi 1): 0 (1)" in str(counted())
    assert "so synapses dominate" in table.chip_note({"wide": 20.0})


def test_silent_and_saturated_layers_are_named():
    notes = table.activity_notes({"a": 0.0, "b": 0.2, "c": 0.999})
    assert notes[0].startswith("1 of 3 neuron layers never fire on this data: a.")
    assert notes[1].startswith("1 of 3 neuron layers fire at nearly every step: c (0.999).")
    assert table.activity_notes({"b": 0.2}) == []


@pytest.mark.parametrize(
    ("value", "said"),
    [("5ep", "pass 5 * len(loader)"), ("300it", "pass 300 "), ("soon", "one epoch is len(loader) steps"),
     (10.5, "got '10.5'"), (True, "got 'True'")],
)  # fmt: skip
def test_a_duration_in_the_library_is_refused_by_type(value, said):
    with pytest.raises(InvalidValue, match="optimizer steps as a whole number") as caught:
        _check_steps("end", value)  # Cubic calls it; its own annotations are checked first while tests run
    assert said in str(caught.value)
    assert 20 <= len(str(caught.value)) <= 300


def test_shrink_that_cuts_nothing_says_so(caplog):
    net = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    with caplog.at_level(logging.WARNING, "spikeprune"):
        net[0].weight.data.mul_(torch.eye(3, 4))
        _, plan = sp.shrink(net, {"0.weight": torch.eye(3, 4).bool()}, torch.ones(1, 4))
    assert plan.cuts == ()
    assert all(word in caplog.text for word in ("shrink cut nothing", "sp.compile", "pattern='channel'"))
    caplog.clear()
    with caplog.at_level(logging.WARNING, "spikeprune"):
        dead = {
            "0.weight": torch.tensor([[True] * 4, [False] * 4, [True] * 4]),
            "0.bias": torch.tensor([1, 0, 1]).bool(),
        }
        net[0].bias.data[1] = 0
        net[0].weight.data[1] = 0
        assert sp.shrink(net, dead, torch.ones(1, 4))[1].cuts
    assert caplog.text == ""


@pytest.mark.parametrize("word", ["version", "--version"])
def test_version_is_understood(word, capsys):
    assert cli.main([word]) == 0
    assert capsys.readouterr().out.startswith("spikeprune 0.")


def test_only_near_names_are_suggested(capsys):
    assert cli.main(["run", "digits", "--wandb", "x"]) == 2
    said = capsys.readouterr().err
    assert "no setting named 'wandb'" in said
    assert "did you mean" not in said
    assert "did you mean 'data.limit'" in str(unknown("setting", "limit", ["data.limit", "lr"]))
    assert "known: a, b" in str(unknown("colour", "zebra", ["a", "b"]))


def test_a_message_of_the_library_has_its_prefix_once(capsys):
    with cli._quiet(False):
        logging.getLogger("spikeprune").warning("spikeprune: 0 of %d", 7)
        logging.getLogger("spikeprune").warning("no compiler")
    assert capsys.readouterr().err == "spikeprune: 0 of 7\nspikeprune: no compiler\n"


def test_list_has_a_line_of_description_each(capsys):
    for kind in ("methods", "models", "datasets", "recipes", "pretrained"):
        assert cli.main(["list", kind]) == 0
        lines = capsys.readouterr().out.splitlines()
        names = [line for line in lines if not line.startswith(" ")]
        assert len(lines) == 2 * len(names), kind  # each name is alone on its line, for scripts
        assert all(len(line.strip()) > 10 for line in lines[1::2]), kind


def test_the_help_of_run_shows_defaults_meanings_and_allowed_values(capsys):
    assert cli.main(["run", "--help"]) == 0
    text = capsys.readouterr().out
    assert "  --optim.decay  cosine or step or constant; default cosine\n      how the learning rate falls" in text
    assert "  --epochs  a whole number of at least 1; default 20\n" in text
    assert "  --curve\n" in text
    assert 'criticality (default derivative): "derivative" takes the surrogate' in text
    assert all(len(line) <= 80 for line in text.partition("The run:")[2].splitlines())
    assert "spikeprune run digits --method magnitude" in text


def test_an_epoch_is_told_as_it_ends():
    line = Epoch(
        phase="pruned", epoch=3, step=60, lr=0.1, train_loss=0.4121, train_accuracy=0.873, val_loss=0.5,
        val_accuracy=0.851, sparsity=0.6125,
    )  # fmt: skip
    assert epoch_line(line, 16) == ("pruned epoch 3/16  loss 0.412  accuracy 87.30% (val. 85.10%)  sparsity 0.6125")
    assert epoch_line(line, 16, "dense").startswith("dense epoch 3/16  loss")
    heard: list[tuple[Epoch, int]] = []
    with ProgressBar(10, on_epoch=lambda line, epochs: heard.append((line, epochs))) as bar:
        bar.epoch(line, 16)
    assert heard == [(line, 16)]


def test_a_shipped_recipe_on_other_data_makes_a_folder_named_after_that_data(tmp_path):
    out = ["--out", str(tmp_path)]
    assert folder_of(load("digits", out)).path.name.startswith("digits-")
    other = folder_of(load("digits", ["--data.name", "mnist", *out])).path
    assert other.name.startswith("mnist-")
    own = folder_of(load("digits", ["--data.name", "my.module:loaders", *out])).path
    assert own.name.startswith("my.module-loaders-")
    before = tmp_path / other.name.replace("mnist-", "digits-")
    before.mkdir()
    assert folder_of(load("digits", ["--data.name", "mnist", *out])).path == before  # of version 0.1


class TwoSteps(nn.Module):
    """Adds time by itself: two steps, whatever T says."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(64, 10)
        self.lif = neuron.LIFNode()

    def forward(self, x):
        return sum(self.lif(self.fc(x.flatten(1))) for _ in range(2)) / 2


class Sequence(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(64, 10)
        self.lif = neuron.LIFNode(step_mode="m")

    def forward(self, x):
        return self.lif(self.fc(x.flatten(2)))


def test_the_time_steps_that_ran_are_known():
    images, frames = torch.rand(10, 1, 8, 8), torch.rand(6, 10, 1, 8, 8)
    two = connect(TwoSteps(), images, 4, 10, "mean", False)
    assert (two.ran, two.T) == (2, 4)
    six = connect(Sequence(), frames, 4, 10, "mean", True)
    assert (six.ran, six.T) == (6, 6)
    assert six(frames, True).shape[0] == 6  # all of the frames, not the first four
    four = connect(Sequence(), images, 4, 10, "mean", False)
    assert (four.ran, four.T) == (4, 4)


def block(*differences: float) -> tuple[Comparison, Block]:
    """Two arms on 357 test images, criticality above magnitude by so much in each seed."""
    seeds = range(len(differences))
    arm = functools.partial(
        Arm, dataset="digits", model="mlp", target=0.9, seeds=tuple(seeds), accuracies=(0.9,) * len(differences),
        values={}, survived=None, equal_budget=True, settings={}, images={"test": 357}, machines=(), runs=(),
    )  # fmt: skip
    versus = paired(dict(enumerate(differences)), dict.fromkeys(seeds, 0.0))
    rows = (arm("magnitude", "magnitude", versus=None), arm("criticality", "criticality", versus=versus))
    return Comparison("magnitude", rows, 0), Block("digits", "mlp", 0.9, rows)


def test_equal_differences_are_told_in_words():
    comparison, equal = block(0.0028, 0.0028)
    assert tables.difference(equal.rows[1]) == "+0.28 in all 2"
    said = tables.family(comparison, equal)
    assert said.startswith("The differences to magnitude are equal in all 2 seeds, so they have no spread")
    assert said.endswith("One test image of 357 is 0.28 points.")
    assert "two seeds in common" not in said
    assert (tables.percent(summarize([0.5, 0.5])), tables.percent(summarize([0.5]))) == ("50.00", "50.00")
    comparison, same = block(0.0, 0.0)
    assert tables.difference(same.rows[1]) == "equal in all 2"
    assert same.tests == 0
    assert tables.family(comparison, same).startswith(
        "In each of the 2 seeds the accuracy is exactly that of magnitude"
    )
    assert tables.family(*block(0.0028)).startswith(
        "No test: that takes two seeds in common with magnitude, and there is 1 seed."
    )
    assert tables.family(*block(0.01, 0.02)).startswith("p (Holm) is p (t) corrected for the 1 test")


def measured():
    """A measurement of two engines, as `spikeprune bench` keeps it."""
    rows = [
        EngineTime(batch=1, engine=engine, median_ms=ms, low_ms=ms, high_ms=ms, images_per_s=1e3 / ms,
                   speedup=speedup, opponent=over)
        for engine, ms, speedup, over in (("dense", 3.4, None, None), ("compiled fp32", 1.0, 2.17, "dense"))
    ]  # fmt: skip
    timing = TimedThreads(threads=1, clock="cpu", rows=tuple(rows))
    return BenchRecord(
        schema=1, name="a", model="mlp", T=2, sparsity=0.9, multiplies_kept=0.1, cpu="c", flags=(), isa="avx2",
        inputs=BenchInputs(kind="test images", count=1, shape=(1, 8, 8), why_random=None), load=0.1, versions={},
        repeats=3, same_class={}, accuracy=None, int16_flipped=0.0, not_shrunk=None, timings=(timing,),
    )  # fmt: skip


def test_terminal_and_report_show_one_speedup():
    result = measured()
    (timing,) = result.timings
    race = figures._race(timing, timing.rows)
    assert race.finding.startswith("2.17× faster: compiled fp32 takes 1.00 ms")
    assert race.bars[1].cells[-1] == "2.17×"
    assert any(line.endswith("2.17x over dense") for line in bench.table(result))
    part = dataclasses.replace(result, accuracy={"model": 0.5}, scored=2000)
    assert "accuracy on 2,000 test images of the run: model 50.00%" in bench.table(part)
    assert all(colour in bench.picture(result) for colour in (*charts.DENSE, *charts.PRUNED))  # those of the pages
    assert BenchRecord.read(json.loads(json.dumps(result))) == result
    with pytest.raises(Impossible, match="timings holds no times"):
        BenchRecord.read({**json.loads(json.dumps(result)), "timings": []})


def test_what_bench_measured_is_printed_even_if_it_cannot_be_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("spikeprune.lab.train.bench_run.bench_run", lambda *_, **__: measured())
    (tmp_path / "bench.json").mkdir()
    assert cli.main(["bench", str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert "2.17x over dense" in said.out
    assert f"cannot write into {tmp_path}: Is a directory; copy the run to where you may write" in said.err
    (tmp_path / "bench.json").rmdir()
    assert cli.main(["bench", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "bench.json")


def test_an_accuracy_at_chance_is_called_so():
    (note,) = chance_note(0.1002, 10, 10_000)
    assert note.startswith("The accuracy of 10.02% is that of guessing among 10 classes (10.00%)")
    assert chance_note(0.3, 10, 355) == []
    assert chance_note(0.5, None, 100) == []


def test_layers_that_are_nearly_cut_through_are_named():
    mask = torch.zeros(64, 16, 3, 3, dtype=torch.bool)
    mask[0, 0, 0, 0] = True
    (note,) = starved_notes({"body.2.weight": mask, "head.weight": torch.ones(10, 64).bool()})
    assert note.startswith("Nearly cut through: body.2 keeps 1 of 9,216 weights for 64 outputs.")
    assert starved_notes({"head.weight": torch.ones(10, 64).bool()}) == []
    assert note.endswith("; a floor (--floor 0.02), --allocate erk or lamp prevents it.")
    table = Table.of({"a": nn.Parameter(torch.ones(4, 2)), "b": nn.Parameter(torch.ones(4, 2))},
                     {"a": torch.eye(4, 2).bool()}, {})  # fmt: skip
    assert str(table).splitlines()[-1].startswith("a keeps 2 of 8 weights, which feed 2 of its 4 outputs; a floor")
    assert len(str(table).splitlines()) == 4


def test_a_floor_that_is_set_is_not_advised_again(capsys):
    layers = {"body.2": (20, 1000, 20, 64)}
    (note,) = starved_of(layers, 0.02)
    assert note.endswith("; a higher floor than 0.02, --allocate erk or lamp prevents it.")
    (note,) = starved_of(layers, 0.02, "erk")
    assert note.endswith("for 64 outputs. A higher floor than 0.02 or a lower sparsity prevents it.")
    (note,) = starved_of(layers, None, "uniform")
    assert note.endswith("A floor (--floor 0.02) or a lower sparsity prevents it.")
    words = ["--floor", "0.002", "--sparsity", "0.99", "--model", "digits-conv-small", "--dry-run"]
    assert cli.main(["run", "digits", *words]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "a higher floor than 0.002, --allocate erk or lamp prevents it" in said
    assert "--floor 0.02" not in said
    table = Table.of({"a": nn.Parameter(torch.ones(4, 2))}, {"a": torch.eye(4, 2).bool()}, {}, 0.1)
    assert "of its 4 outputs; a higher floor or" in str(table)


def test_layers_at_their_floor_are_named(tmp_path, capsys):
    layers = dict.fromkeys("abcdef", (20, 1000)) | {"g": (21, 1000)}
    (note,) = floor_notes(layers, 0.02)
    assert note.startswith(
        "6 of 7 layers are at the floor of 0.02, the least that a layer may keep: a, b, c, d and 2 more"
    )
    assert floor_notes(layers, None) == floor_notes(layers, 1) == floor_notes(layers, 0.01) == []
    table = Table.of({"a": nn.Parameter(torch.ones(10, 10))}, {"a": torch.eye(10).bool()}, {}, 0.1)
    assert str(table).endswith("1 of 1 layers is at the floor of 0.1, the least that a layer may keep: a.")
    words = ["--floor", "0.04", "--sparsity", "0.95", "--model", "digits-conv-small", "--dry-run"]
    assert cli.main(["run", "digits", *words]) == 0
    assert re.search("note: [12] of 3 layers (is|are) at the floor of 0.04", capsys.readouterr().out)
    write_run(tmp_path, 0.9, "floor=0.02", "method=magnitude")
    (folder,) = tmp_path.iterdir()
    masks = {"a.weight": torch.arange(1000).reshape(10, 100) < 20}
    assert any("1 of 1 layers is at the floor" in n for n in run_notes(RunFolder(folder).read_record(), None, masks))


def test_the_energy_note_of_a_run_takes_events_from_operations_and_masks():
    # 8 alive weights for 4 outputs, inputs 10 % active: 0.2 events a neuron and step.
    layer = LayerOperations(neuron="lif", macs=80.0, acs=8.0, mac_ops=0.0)
    statistics = NetworkStatistics(images=1, layers={"fc": layer}, neurons={"lif": NeuronStatistics(firing_rate=0.1)})
    assert "fc (0.2)" in energy_note(statistics, {"fc.weight": torch.eye(8).bool()[:, :4].T.repeat(1, 2)})
    assert energy_note(None, {}).startswith("On a neuromorphic chip neurons and packets cost energy too")


def test_a_dry_run_says_where_its_quotas_come_from(capsys):
    assert cli.main(["run", "digits", "--dry-run"]) == 0
    assert "note: The quotas rank the initial weights." in capsys.readouterr().out
    assert cli.main(["run", "digits", "--dry-run", "--allocate", "uniform", "--sparsity", "0.999"]) == 0
    said = capsys.readouterr().out
    assert "initial weights" not in said
    assert "note: Nearly cut through: " in said


def test_a_dry_run_says_when_regrown_weights_would_die(capsys):
    def said(*words: str) -> str:
        assert cli.main(["run", "digits", "--dry-run", *words]) == 0
        return capsys.readouterr().out

    # 21 steps an epoch, a mask update an epoch; 0.1 / (2 * 0.1 * 5e-4) = 1,000 steps
    assert "Mask updates are 21 steps apart, and a weight turns over in 1,000 steps" in said()
    for words in (["--lr", "1", "--optim.weight-decay", "0.005"], ["--method", "magnitude"], ["--regrow", "0"],
                  ["--grace", "true"], ["--optim.weight-decay", "0"]):  # fmt: skip
        assert "turns over" not in said(*words), words
    assert "turns over" not in said(*demo.TRAINING[1:])


def test_a_gpu_that_torch_cannot_use_is_told(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device.unusable_gpu([str(tmp_path)]) == ""
    (tmp_path / "0000:01:00.0").mkdir()
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "is built for the CPU only" in device.unusable_gpu([str(tmp_path)])
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    assert "driver may be too old for CUDA 12.8" in device.unusable_gpu([str(tmp_path)])
    monkeypatch.setattr(device, "unusable_gpu", lambda: "this machine has a GPU")
    with caplog.at_level(logging.WARNING, "spikeprune"):
        assert device.choose_device("auto").type == "cpu"
    assert "spikeprune: this machine has a GPU; this runs on the CPU" in caplog.text


def test_the_demo_trains_where_regrown_weights_have_time_to_grow():
    recipe = load(demo.TRAINING[0], demo.TRAINING[1:])
    steps = lay_out(recipe, 1298).schedule.steps()
    turnover = turnover_steps(recipe.lr, recipe.optim.weight_decay, recipe.optim.momentum)
    assert {after - before for before, after in itertools.pairwise(steps)} == {42}
    assert 2.5 * turnover == pytest.approx(41.7, abs=0.1)


def test_the_demo_says_which_method_is_ahead():
    def record(accuracy, rounds=()):
        data = SimpleNamespace(counts={"test": 355})
        return SimpleNamespace(accuracy=accuracy, data=data, rounds=rounds)

    rounds = [SimpleNamespace(regrown=100, survived=40), SimpleNamespace(regrown=50, survived=None)]
    behind = demo.verdict(record(340 / 355, rounds), record(342 / 355))
    assert "criticality 95.77% (340 of 355), magnitude 96.34% (342 of 355): magnitude is ahead by 2 images" in behind[0]
    assert behind[1] == "40 of 100 regrown weights outlived the next cut."
    assert "level; one standard error" in demo.verdict(record(342 / 355), record(342 / 355))[0]


@pytest.mark.parametrize("name", ["digits", "fashion", "cifar10", "cifar100"])
def test_recipes_readme_and_demo_say_what_the_study_advises(name):
    study = (ROOT / "docs/study.md").read_text()
    assert "`magnitude` where a dense network can be trained, or criticality with its decaying share" in study
    recipe, text = load(name), (ROOT / f"src/spikeprune/recipes/{name}.yaml").read_text()
    assert (recipe.method, recipe.regrow_schedule) == ("criticality", "decay")
    assert "advises --method magnitude from dense, or criticality with its decaying share" in text
    assert "the [study](docs/study.md) advises `sp.Magnitude()`" in (ROOT / "README.md").read_text()
    record = SimpleNamespace(accuracy=0.9, data=SimpleNamespace(counts={"test": 10}), rounds=[])
    assert "advises magnitude where a dense network can be trained" in demo.verdict(record, record)[-1]


def test_the_shell_completes_commands_and_keys(capsys):
    assert cli.main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    asked = "COMP_WORDS=(spikeprune {words}); COMP_CWORD={at}; _spikeprune; echo ${{COMPREPLY[@]}}"
    for words, at, wanted in (
        ("ru", 1, "run"),
        ("run fashion-c", 2, "fashion-channels"),
        ("run digits --prune.ev", 3, "--prune.every --prune.events"),
        ("run digits --method crit", 4, "critical-energy criticality"),
    ):
        done = subprocess.run(
            ["bash", "-c", script + asked.format(words=words, at=at)], capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout.strip() == wanted
    assert cli.main(["completion", "zsh"]) == 0
    assert "bashcompinit" in capsys.readouterr().out
    assert cli.main(["completion", "fish"]) == 2
    assert "no shell named 'fish'; known: bash, zsh" in capsys.readouterr().err


@pytest.mark.parametrize(
    "code",
    [
        "from spikeprune.cli.main import main; assert main(['completion', 'bash']) == 0",
        "import spikeprune as sp; sp.methods(); from spikeprune.lab.recipe import load; load('digits')",
    ],
)
def test_the_name_methods_is_a_function_and_a_package_whatever_comes_first(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)  # nothing is imported yet
    assert (done.returncode, done.stderr) == (0, "")


def test_the_script_of_a_job_array_takes_options_of_the_scheduler(tmp_path, capsys):
    words = ["sweep", "digits", "--seeds", "0,1", "--baseline", "false", "--out", str(tmp_path)]
    options = ["--time", "02:00:00", "--memory", "8G", "--gpus", "1", "--at-once", "4", "--setup", ". env/bin/activate"]
    assert cli.main([*words, "--array", "print", *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:][:2] == ["#SBATCH --array=1-2%4", "#SBATCH --cpus-per-task=1"]
    assert lines[4:8] == [
        "#SBATCH --time=02:00:00",
        "#SBATCH --mem=8G",
        "#SBATCH --gpus-per-task=1",
        ". env/bin/activate",
    ]
    assert not any(option in lines[-1] for option in ("--time", "--setup", "--at-once"))
    assert cli.main([*words, "--array", "print", "--memory", "much"]) == 2
    assert "--memory must be a size such as 8G, got 'much'" in capsys.readouterr().err
    assert cli.main([*words, "--time", "1"]) == 2
    assert "is for the script that `--array print` prints" in capsys.readouterr().err


def test_a_run_records_and_shows_the_time_steps_that_ran(tmp_path, monkeypatch, capsys):
    (tmp_path / "net_of_two_steps.py").write_text(
        "from spikingjelly.activation_based import neuron\n"
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.fc, self.lif, self.head = nn.Linear(64, 8), neuron.LIFNode(), nn.Linear(8, 10)\n"
        "    def forward(self, x):\n"
        "        return sum(self.head(self.lif(self.fc(x.flatten(1)))) for _ in range(2)) / 2\n"
        "build = Net\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    words = ["--model", "net_of_two_steps:build", "--epochs", "1", "--data.limit", "40", "--batch", "16"]
    words += ["--baseline", "false", "--precision", "fp32", "--data.test_limit", "50", "--out", str(tmp_path / "runs")]
    assert cli.main(["run", "digits", *words]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("pruned epoch 1/1  loss ")
    folder = RunFolder.existing(said[-1])
    record = folder.read_record()
    assert record.settings.T == 2
    assert record.data.counts["test"] == 50
    assert any("Only 50 test images were scored" in line for line in said)
    classes = record.pruned.classes
    assert classes is not None
    assert sum(each.images for each in classes) == record.data.counts["test"]
    assert sum(each.right for each in classes) / record.data.counts["test"] == record.accuracy
    page = folder.report.read_text()
    assert "T&nbsp;=&nbsp;2" in page
    assert "On a neuromorphic chip neurons and packets cost energy too" in page
    assert page.count('<p class="note">Only 50 test images were scored') == 1
    assert "publish no such accuracy" not in page.partition("</header>")[0]
    assert cli.main(["run", "digits", *words]) == 0  # the same command finds it
    assert capsys.readouterr().out.splitlines()[-1] == said[-1]


def test_a_run_that_ends_in_a_silent_network_says_so_in_terminal_and_report(tmp_path, monkeypatch, capsys):
    (tmp_path / "net_that_falls_silent.py").write_text(
        "from spikingjelly.activation_based import layer, neuron\n"
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, classes):\n"
        "        super().__init__()\n"
        "        sizes = [64, *[32] * 6]\n"
        "        parts = [part for a, b in zip(sizes, sizes[1:]) for part in (nn.Linear(a, b), neuron.LIFNode())]\n"
        "        self.body, self.head = nn.Sequential(*parts), nn.Linear(32, classes)\n"
        "    def forward(self, x):\n"
        "        return self.head(self.body(x.flatten(1)))\n"
        "build = Net\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    words = ["--model", "net_that_falls_silent:build", "--epochs", "1", "--data.limit", "200", "--baseline", "false"]
    words += ["--precision", "fp32", "--data.test_limit", "50", "--T", "2", "--out", str(tmp_path / "runs")]
    assert cli.main(["run", "digits", *words]) == 0
    said = capsys.readouterr().out
    page = RunFolder.existing(said.splitlines()[-1]).report.read_text()
    for text in (said, page):
        assert "of 6 neuron layers never fire on this data" in text
        assert "is that of guessing among 10 classes" in text


def test_dir_shows_public_names_only():
    shown = [name for name in dir(sp) if not name.startswith("__")]
    assert {"Pruner", "Criticality", "squeeze", "count"} <= set(shown)
    assert not {"Any", "TYPE_CHECKING", "importlib"} & set(shown)
    assert not [name for name in shown if name.startswith("_")]
    assert all(hasattr(sp, name) for name in shown)


@pytest.mark.parametrize("name", ["prune", "count", "shrink", "squeeze", "model"])
def test_editors_are_shown_the_arguments_of_a_public_function(name):
    parameters = inspect.signature(getattr(sp, name)).parameters
    assert "args" not in parameters
    assert next(iter(parameters)) in ("model", "name")


def test_what_is_listed_from_text_is_what_is_registered():
    from spikeprune import data, methods
    from spikeprune.cli import list as listing
    from spikeprune.lab.recipe import shipped
    from spikeprune.methods.shared.described import summary_of

    assert dict(listing._methods()) == {name: summary_of(name) for name in methods.names()}
    assert dict(listing._datasets()) == {name: listing._imported_dataset(name) for name in data.names()}
    assert list(catalogue.recipe_heads()) == shipped()
    assert all(catalogue.recipe_heads().values())


def test_a_list_is_printed_without_waiting_for_torch():
    code = "import sys; from spikeprune.cli.main import main; main(['list']); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "    Keep the largest absolute weights; bring nothing back.\n" in done.stdout


def test_the_script_of_a_job_array_is_printed_without_waiting_for_torch():
    words = ["sweep", "digits", "--methods", "magnitude,criticality", "--seeds", "0,1", "--array", "print"]
    code = f"import sys; from spikeprune.cli.main import main; main({words}); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "#SBATCH --array=1-6\n" in done.stdout


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("digits", f"--methods {','.join(sp.methods())} --sparsities 0.9"),
        (
            "digits",
            "--methods dense,magnitude,rigl --sparsities 0.5,0.9 --seeds=3,4 --T 2,4 --baseline false",
        ),
        ("fashion", "--methods dense --sparsities 0.5,0.9 --data.limit 100,200 --lr 0.1,0.05"),
        ("cifar10", "--datasets cifar10,mynets:load --models mynets:build,resnet19-weights --batch 64,128"),
        *((name, "--seeds 0,1 --sparsities 0.8,0.9 --out there") for name in catalogue.recipe_heads()),
    ],
)
def test_the_runs_of_a_plain_sweep_are_counted_as_they_would_be_listed(recipe, words):
    assert count_runs(recipe, words.split()) == len(read_sweep(recipe, words.split()).tasks)


@pytest.mark.parametrize(
    "words",
    [
        "mine.yaml --seeds 0,1", "digits --seeds 0,0", "digits --seeds 0,01", "digits --seeds",
        "digits --sparsities 95", "digits --methods magnitud", "digits --methods squeeze", "digits --unit neuron",
        "digits --regrow 0.1,0.2", "digits --models resnet", "digits --reference dense", "digits --out a,b",
        "digits --seeds 0 --seed 1", "digits x",
    ],
)  # fmt: skip
def test_a_sweep_that_is_not_plain_or_wrong_is_left_to_the_reader_of_recipes(words):
    assert count_runs(*words.split(maxsplit=1)[:1], words.split()[1:]) is None


def test_methods_of_the_users_own_folder_are_listed(tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text(
        '@register("own", source="me")\nclass Own(Method):\n    """Keep mine.\n\n    x"""\n'
    )
    monkeypatch.setenv("SPIKEPRUNE_METHODS", str(tmp_path))
    found = catalogue.registrations("methods", "SPIKEPRUNE_METHODS", "spikeprune.methods")
    assert found is not None
    assert [each.doc for each in found if each.name == "own"] == ["Keep mine."]
    (tmp_path / "own.py").write_text("class (")
    assert catalogue.registrations("methods", "SPIKEPRUNE_METHODS", "spikeprune.methods") is None


def test_options_take_hyphens_and_keys_underscores():
    hyphens = load("digits", ["--regrow-schedule", "constant", "--optim.weight-decay=0.01"])
    assert hyphens == load("digits", ["--regrow_schedule", "constant", "--optim.weight_decay=0.01"])


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_the_cifar_recipes_space_mask_updates_by_more_than_a_turnover(name):
    recipe = load(name)
    assert (recipe.data.name, recipe.data.crop, recipe.data.flip) == (name, 4, True)
    plan = lay_out(recipe, 45_000)
    steps = plan.schedule.steps()
    turnover = (1 - recipe.optim.momentum) / (2 * recipe.lr * recipe.optim.weight_decay)
    assert min(b - a for a, b in itertools.pairwise(steps)) >= turnover == pytest.approx(1000)
    assert plan.steps - steps[-1] >= 0.3 * plan.steps  # what is left to recover


def test_what_a_run_does_between_epochs_is_said_where_there_is_no_bar():
    said: list[str] = []
    with ProgressBar(1, on_stage=said.append) as bar:
        bar.stage("scoring 355 test images")
    assert said == ["scoring 355 test images"]


@pytest.mark.parametrize("command", [None, *cli.commands()])
def test_every_help_fits_80_columns_and_has_examples(command, capsys):
    assert cli.main([*([command] if command else []), "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("usage: spikeprune") for line in lines)
    assert any(line.startswith("  spikeprune ") for line in lines[lines.index("examples:") + 1 :])


def test_the_help_of_commands_shows_defaults(capsys):
    for command, said in (
        ("bench", "whose median and spread are shown (default 5)"),
        ("analyze", "(default 2000)"),
        ("report", "between two looks (default 5.0)"),
        ("squeeze", "  --sparsity  a number; default 0.95\n"),
        ("squeeze", "  --data.test-limit  a whole number of at least 1 or null; default null"),
    ):
        assert cli.main([command, "--help"]) == 0
        text = capsys.readouterr().out
        assert said in text or said in " ".join(text.split()), command


class WideBehindNarrow(nn.Module):
    """A hidden linear layer behind convolutions: its weights are small, as it has many inputs."""

    def __init__(self):
        super().__init__()
        self.stem, self.lif1 = nn.Conv2d(1, 16, 3, padding=1), neuron.LIFNode()
        self.body, self.lif2 = nn.Conv2d(16, 32, 3, padding=1), neuron.LIFNode()
        self.back, self.lif4 = nn.Conv2d(32, 16, 3, padding=1), neuron.LIFNode()
        self.hidden, self.lif3 = nn.Linear(16 * 64, 30), neuron.LIFNode()
        self.head = nn.Linear(30, 10)

    def forward(self, x):
        x = self.lif1(self.stem(x))
        x = self.lif4(self.back(self.lif2(self.body(x)))) + x
        return self.head(self.lif3(self.hidden(x.flatten(1))))


def channels_left(**keywords) -> tuple[sp.Masks, list[int]]:
    torch.manual_seed(0)
    net = WideBehindNarrow()
    masks = sp.prune(net, "magnitude", 0.5, data=[torch.rand(2, 1, 8, 8)], pattern="channel", **keywords)
    return masks, [int(masks[f"{name}.weight"].flatten(1).any(1).sum()) for name in ("stem", "body", "hidden")]


def test_a_global_ranking_of_channels_leaves_half_of_an_even_cut_in_each_layer():
    masks, left = channels_left()
    assert left[2] == 7  # of 30; an even cut would leave 15
    assert sum(left) == 39  # of 78, as before
    assert starved_notes(masks) == []
    masks, left = channels_left(floor=1)  # as recipes do, and 0.1.0 did
    assert (left[2], sum(left)) == (1, 39)
    assert "1 of which have an input left" in starved_notes(masks)[0]


def test_a_layer_with_one_channel_left_is_named():
    mask = torch.zeros(30, 288, dtype=torch.bool)
    mask[3] = True
    (note,) = starved_notes({"hidden.weight": mask})
    assert "hidden keeps 288 of 8,640 weights for 30 outputs, 1 of which have an input left" in note
    table = Table.of({"hidden.weight": nn.Parameter(torch.ones(30, 288))}, {"hidden.weight": mask}, {})
    assert "feed 1 of its 30 outputs" in str(table)


def test_loaders_of_recordings_tell_the_time_steps_of_the_record(tmp_path, monkeypatch, capsys):
    (tmp_path / "frames_of_six.py").write_text(
        "import torch\n"
        "from spikingjelly.activation_based import neuron\n"
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.fc, self.lif, self.head = nn.Linear(32, 8), neuron.LIFNode(step_mode='m'), nn.Linear(8, 3)\n"
        "    def forward(self, x):\n"
        "        return self.head(self.lif(self.fc(x.flatten(2))))\n"
        "def build(classes):\n"
        "    return Net()\n"
        "class Frames(torch.utils.data.Dataset):\n"
        "    def __len__(self):\n"
        "        return 24\n"
        "    def __getitem__(self, i):\n"
        "        return torch.rand(6, 2, 4, 4), i % 3\n"
        "def loaders():\n"
        "    return Frames(), Frames()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    words = ["--model", "frames_of_six:build", "--data.name", "frames_of_six:loaders", "--epochs", "1", "--batch", "8"]
    words += ["--baseline", "false", "--precision", "fp32", "--method", "magnitude", "--out", str(tmp_path / "runs")]
    assert cli.main(["run", "digits", *words]) == 0
    folder = RunFolder.existing(capsys.readouterr().out.splitlines()[-1])
    assert folder.read_record().settings.T == 6
    assert "T&nbsp;=&nbsp;6" in folder.report.read_text()


@pytest.mark.parametrize("accuracies", [(0.96, 0.99), (0.999, 0.90), (0.02, 0.06)])
def test_the_axis_of_a_comparison_stays_within_0_to_100_percent(accuracies, tmp_path, capsys):
    for seed, accuracy in enumerate(accuracies):
        for target in (0.9, 0.98):
            write_run(tmp_path, accuracy, "method=magnitude", f"sparsity={target}", f"seed={seed}")
    assert cli.main(["compare", str(tmp_path), "--html", str(tmp_path / "page.html")]) == 0
    ticks = re.findall(r'<text class="end"[^>]*>([-\d.]+)</text>', (tmp_path / "page.html").read_text())
    assert ticks
    assert all(0 <= float(tick) <= 100 for tick in ticks)


@pytest.mark.parametrize(
    ("words", "suggested"),
    [
        (["versoin"], "version"),
        (["hello"], None),
        (["sweeep"], "sweep"),
        (["run", "digits", "--wandb", "x"], None),
        (["run", "digits", "--mlflow", "x"], None),
        (["run", "digits", "--tensorbord", "true"], "tensorboard"),
        (["run", "digits", "--method", "magnitud"], "magnitude"),
        (["run", "digits", "--method", "banana"], None),
        (["list", "recipies"], "recipes"),
    ],
)
def test_a_suggestion_is_made_only_where_one_is_near(words, suggested, capsys):
    assert cli.main(words) == 2
    said = capsys.readouterr().err
    assert ("did you mean" in said) == (suggested is not None)
    assert suggested is None or f"did you mean '{suggested}'" in said
    assert len(said.splitlines()) <= 2


@pytest.mark.parametrize("command", cli.commands())
def test_the_examples_of_a_help_use_what_the_help_explains(command, capsys):
    """`run`, `config` and `sweep` take every key of a recipe, which `run --help` lists."""
    assert cli.main([command, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    if command in ("run", "config", "sweep"):
        assert cli.main(["run", "--help"]) == 0
        lines += capsys.readouterr().out.splitlines()
    examples = [line for line in lines if line.startswith("  spikeprune ")]
    assert examples
    explained = "\n".join(line for line in lines if line not in examples)
    known = flags(re.sub("`[^`]*`", "", explained))  # quoted commands are others'
    assert flags("\n".join(examples)) <= known


def flags(text):
    return set(re.findall(r"--[\w.-]+", text))


class Terminal(io.StringIO):
    def isatty(self):
        return True


def on_a_terminal(monkeypatch, *words: str) -> str:
    monkeypatch.setattr(shutil, "get_terminal_size", lambda *_: os.terminal_size((80, 24)))
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    cli.main(list(words))
    return terminal.getvalue()


@pytest.mark.parametrize(
    "words", ["list", "doctor", "run digits --dry-run", "compare RUNS --reviewer --claims", "compare --claims"]
)
def test_on_a_terminal_of_80_columns_no_line_is_longer(words, tmp_path, monkeypatch):
    for seed in (0, 1):
        for method in ("magnitude", "criticality"):
            write_run(tmp_path, 0.9 + seed / 100, f"method={method}", f"seed={seed}")
    said = on_a_terminal(monkeypatch, *words.replace("RUNS", str(tmp_path)).split())
    plain = re.sub(r"\x1b\[\d+m", "", said).splitlines()
    assert len(plain) > 3
    assert [line for line in plain if len(line) > 80] == []


def test_the_table_of_a_sweep_fits_the_terminal(tmp_path, monkeypatch, capsys):
    words = ["--methods", "magnitude,criticality", "--sparsities", "0.9", "--seeds", "0,1", "--out", str(tmp_path)]
    found = read_sweep("digits", words)
    for task in found.tasks:
        words = [f"{key}={value}" for key, value in (("method", task.recipe.method), ("seed", task.recipe.seed))]
        write_run(tmp_path, 0.9, *words)
    monkeypatch.setattr("spikeprune.lab.study.compare.collect", lambda paths: collect([tmp_path]))
    monkeypatch.setattr(shutil, "get_terminal_size", lambda *_: os.terminal_size((80, 24)))
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    sweep._print_table(found)
    assert terminal.getvalue()
    assert max(map(len, terminal.getvalue().splitlines())) <= 80


def test_a_terminal_has_colour_and_a_pipe_or_no_color_has_none(monkeypatch, capsys):
    assert "\x1b[1mmagnitude\x1b[0m\n" in on_a_terminal(monkeypatch, "list", "methods")
    assert on_a_terminal(monkeypatch, "versoin").startswith("\x1b[31mspikeprune:\x1b[0m no command named 'versoin'")
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    monkeypatch.setenv("NO_COLOR", "1")
    cli.main(["list", "methods"])
    assert "\x1b" not in terminal.getvalue()


def test_an_epoch_line_fits_80_columns():
    line = Epoch(
        phase="pruned", epoch=199, step=60, lr=0.1, train_loss=0.4, train_accuracy=0.9, val_loss=0.5, val_accuracy=0.9,
        sparsity=0.95,
    )  # fmt: skip
    assert len(epoch_line(line, 200)) <= 80


def test_the_library_is_free_of_warnings_about_triton():
    importlib.import_module("spikeprune.integrations.spikingjelly")
    torchs = logging.getLogger("torch._library.triton")  # warns at the first forward of SpikingJelly on a CPU

    def heard(text: str) -> bool:
        return bool(torchs.filter(torchs.makeRecord(torchs.name, logging.WARNING, "", 0, text, (), None)))

    assert not heard("Triton not available, find_triton_kernels = []")
    assert heard("another warning")
