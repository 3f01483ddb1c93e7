"""What a sweep's file asks for: combinations, the dense run once a seed, arms, the command line, errors."""

import json
import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import pytest

from spikeprune.cli.main import main
from spikeprune.core.errors import RunFailed, UserError
from spikeprune.lab.recipe import load, settings_hash
from spikeprune.lab.recipe.timetable import lay_out, learning_rate
from spikeprune.lab.study.tuning import as_dict, tried
from spikeprune.lab.sweep import workers
from spikeprune.lab.sweep.sweep import read_sweep, read_tuning

FILE = """
model: mlp
epochs: 4
data: {name: digits, limit: 200}
prune: {begin: 0ep, end: 2ep, every: 1ep}
methods: [magnitude, criticality]
sparsities: [0.8, 0.9]
seeds: [0, 1]
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(FILE)
    return path


def _runs(sweep):
    return [(task.label, task.recipe.sparsity, task.recipe.seed) for task in sweep.tasks]


def test_all_combinations_seed_by_seed_and_dense_once_a_seed(file):
    sweep = read_sweep(str(file))
    assert _runs(sweep)[:5] == [
        ("dense", 0.0, 0),
        ("magnitude", 0.8, 0),
        ("criticality", 0.8, 0),
        ("magnitude", 0.9, 0),
        ("criticality", 0.9, 0),
    ]
    assert len(sweep.tasks) == 10
    assert [run[2] for run in _runs(sweep)] == [0] * 5 + [1] * 5
    assert not any(task.recipe.baseline for task in sweep.tasks)
    assert sweep.name == "small"


def test_a_run_is_the_one_that_run_would_make(file, tmp_path):
    task = read_sweep(str(file)).tasks[2]
    plain = tmp_path / "plain.yaml"
    kept = [line for line in FILE.splitlines() if not line.startswith(("methods", "sparsities", "seeds"))]
    plain.write_text("\n".join(kept))
    same = load(str(plain), ["--method", "criticality", "--sparsity", "0.8", "--seed", "0"])
    assert task.hash == settings_hash(same)


def test_a_method_brings_its_own_settings_wherever_it_stands_in_the_list(file):
    found = read_sweep(str(file), ["--methods", "rigl,magnitude", "--sparsities", "0.9", "--seeds", "3"])
    other = read_sweep(str(file), ["--methods", "magnitude,rigl", "--sparsities", "0.9", "--seeds", "3"])
    assert {t.hash for t in found.tasks} == {t.hash for t in other.tasks}
    assert {t.label: t.recipe.start for t in found.tasks} == {"dense": "dense", "rigl": "random", "magnitude": "dense"}


def test_lists_that_a_method_takes_no_notice_of_do_not_multiply_it(file):
    words = ["--methods", "magnitude,random", "--regrow", "0.1,0.2", "--sparsities", "0.9", "--seeds", "0"]
    assert _runs(read_sweep(str(file), words)) == [
        ("dense", 0.0, 0),
        ("magnitude", 0.9, 0),
        ("random", 0.9, 0),
        ("random", 0.9, 0),
    ]
    spaced = read_sweep(str(file), ["--methods", "magnitude", "--prune.every", "0.5ep,1ep", "--seeds", "0"])
    assert [run[0] for run in _runs(spaced)].count("dense") == 1


def test_epochs_in_a_list_scale_the_phases(file):
    sweep = read_sweep(str(file), ["--epochs", "4,8", "--methods", "magnitude", "--sparsities", "0.9", "--seeds", "0"])
    assert [(t.label, t.recipe.epochs, t.recipe.prune.end) for t in sweep.tasks] == [
        ("dense", 4, "2ep"),
        ("magnitude", 4, "2ep"),
        ("dense", 8, "4ep"),
        ("magnitude", 8, "4ep"),
    ]


def test_the_command_line_overrides_as_it_does_for_run(file):
    """One value scales the phases like a list of one; a key that a method sets by default is the user's."""
    words = ["--methods", "rigl", "--sparsities", "0.9", "--seeds", "0", "--baseline", "false"]
    (task,) = read_sweep(str(file), [*words, "--epochs", "8", "--start", "dense"]).tasks
    assert (task.recipe.epochs, task.recipe.prune.end, task.recipe.start) == (8, "4ep", "dense")


def test_arms_have_names_settings_and_lists(tmp_path):
    path = tmp_path / "arms.yaml"
    path.write_text(
        "recipe: digits\nseed: 0\nsparsity: 0.9\nbaseline: false\nreference: gmp\narms:\n"
        "  gmp: {method: magnitude}\n"
        "  gmp, 80 % kept: {method: magnitude, keep: 0.8}\n"
        "  synapse: {method: criticality, unit: synapse, regrow: [0.1, 0.3]}\n"
    )
    sweep = read_sweep(str(path))
    # 80 % of what sparsity 0.9 keeps: 1 - 0.8 * 0.1 = 0.92, compared at 0.9.
    found = [(t.label, t.target, t.recipe.sparsity, t.recipe.regrow) for t in sweep.tasks]
    assert found == [
        ("gmp", 0.9, 0.9, 0.2),
        ("gmp, 80 % kept", 0.9, 0.92, 0.2),
        ("synapse", 0.9, 0.9, 0.1),
        ("synapse", 0.9, 0.9, 0.3),
    ]
    assert sweep.tasks[2].recipe.settings["unit"] == "synapse"
    assert sweep.tasks[0].recipe.model == "digits-conv-wide"
    assert sweep.reference == "gmp"


def test_shares_of_a_job_array_cover_every_run_once(file):
    sweep = read_sweep(str(file))
    shares = [sweep.share(k, 3).tasks for k in (1, 2, 3)]
    assert sorted(t.hash for share in shares for t in share) == sorted(t.hash for t in sweep.tasks)
    assert sum(map(len, shares)) == len(sweep.tasks)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--methods", "magnitud"], "no method named 'magnitud'; did you mean 'magnitude'"),
        (["--sparsities", "0.9,1.5"], r"sparsity must be in \[0, 1\), got 1.5"),
        (["--sparsitie", "0.9"], "no setting named 'sparsitie'; did you mean 'sparsity'"),
        (["--seeds", "[]"], "seed of the sweep is an empty list"),
        (["--seeds"], "--seeds needs a value after it"),
        (["seeds"], "expected --key value, got 'seeds'"),
        (["--arms", "3"], "arms of a sweep must be"),
        (["--reference", "nobody"], "the reference 'nobody' is no arm of this sweep"),
        (["--methods", "[a"], "cannot be read"),
        (["--methods", "[]"], r"the sweep names no method: give methods: \[magnitude, criticality\], or --methods a,b"),
    ],
)
def test_what_is_wrong_is_named(file, words, message):
    with pytest.raises(UserError, match=message):
        read_sweep(str(file), words)


@pytest.mark.parametrize("keep", ["0", "1.5", "true", "most", "-0.8"])
def test_an_arm_keeps_a_share_of_the_weights(file, keep):
    file.write_text(f"{FILE}arms:\n  few: {{method: magnitude, keep: {keep}}}\n")
    with pytest.raises(UserError, match=r"keep of the arm 'few' must be a share in \(0, 1\], got .*; as in keep: 0\.8"):
        read_sweep(str(file))


@pytest.mark.parametrize("words", [["--workers", "0"], ["--workers"], ["--array", "4/3"], ["--array", "x"]])
def test_options_of_the_command_are_checked(file, words, capsys):
    assert main(["sweep", str(file), *words]) == 2
    assert words[0] in capsys.readouterr().err


def test_a_slurm_script_has_one_task_a_run(file, capsys):
    assert main(["sweep", str(file), "--seeds", "0", "--array", "print"]) == 0
    printed = capsys.readouterr().out
    assert "#SBATCH --array=1-5\n" in printed
    assert printed.rstrip().endswith('--seeds 0 --threads 1 --array "$SLURM_ARRAY_TASK_ID/5"')


def test_a_dry_run_lists_the_runs_with_their_time_and_writes_nothing(file, tmp_path, capsys):
    words = ["--seeds", "0", "--sparsities", "0.9", "--out", str(tmp_path / "runs"), "--dry-run", "--workers", "2"]
    assert main(["sweep", str(file), *words]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.rsplit("  ", 1)[1] for line in printed[:3]] == [
        "dense, sparsity 0, seed 0",
        "magnitude, sparsity 0.9, seed 0",
        "criticality, sparsity 0.9, seed 0",
    ]
    assert all("to do" in line for line in printed[:3])
    assert printed[3].startswith("3 runs, 3 to make; ")  # the list comes at once, the times after it
    assert all("about" in line for line in printed[4:7])
    assert printed[7].startswith("3 runs, 3 to make: about ")
    assert not (tmp_path / "runs").exists()


def test_the_list_of_runs_is_the_same_file_for_the_same_sweep(file, tmp_path):
    words = ["--out", str(tmp_path / "runs")]
    read_sweep(str(file), words).save()
    read_sweep(str(file), words).save()
    read_sweep(str(file), [*words, "--seeds", "7"]).save()
    files = sorted((tmp_path / "runs").iterdir())
    assert len(files) == 2
    counts = sorted(len(json.loads(path.read_text())["runs"]) for path in files)
    assert counts == [5, 10]


def test_the_list_of_runs_is_kept_by_whoever_wrote_it_and_a_folder_that_went_is_told(file, tmp_path, monkeypatch):
    """Two tasks of a job array write one list at a time; one of them finds its own file gone, and the list there."""
    found = read_sweep(str(file), ["--out", str(tmp_path / "runs")])
    replace = os.replace

    def beaten(beside, path):
        replace(beside, path)
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(os, "replace", beaten)
    found.save()
    assert len(json.loads(found.file.read_text())["runs"]) == 10

    def removed(beside, path):
        shutil.rmtree(path.parent)
        replace(beside, path)

    monkeypatch.setattr(os, "replace", removed)
    with pytest.raises(
        UserError, match=r"cannot write .*, its folder was removed meanwhile; the same command makes it"
    ):
        found.save()


def test_a_worker_that_dies_is_told(file, tmp_path, monkeypatch):
    """Forked here, which spares the imports of a new Python."""
    context = multiprocessing.get_context

    def die(*_):
        os.kill(os.getpid(), signal.SIGKILL)  # as a system does that has no memory left

    monkeypatch.setattr(multiprocessing, "get_context", lambda _: context("fork"))
    monkeypatch.setattr(workers, "run", die)
    tasks = read_sweep(str(file), ["--out", str(tmp_path)]).tasks[:2]
    with pytest.raises(
        RunFailed, match=r"a worker process of the sweep died \(out of memory\?\); the same command goes on"
    ):
        workers.work(tasks, 2, 1, lambda end: None)


TUNED = (
    FILE
    + """
tune: {lr: [0.1, 0.2], seeds: [100, 101], sparsities: [0.9], data.validation: 0.2}
"""
)


def test_tuning_tries_the_same_grid_for_every_arm_on_seeds_of_its_own(file):
    file.write_text(TUNED)
    assert {task.recipe.seed for task in read_sweep(str(file)).tasks} == {0, 1}  # the sweep takes no notice of it
    found = read_tuning(str(file))
    assert found.name == "small-tune"
    points = [(task.label, task.recipe.lr, task.recipe.seed) for task in found.tasks]
    assert sorted(points) == sorted(
        (label, lr, seed) for label in ("magnitude", "criticality") for lr in (0.1, 0.2) for seed in (100, 101)
    )
    assert {(task.recipe.sparsity, task.recipe.data.validation) for task in found.tasks} == {(0.9, 0.2)}
    file.write_text(FILE)
    with pytest.raises(UserError, match="has no tuning grid; give it, for example, tune:"):
        read_tuning(str(file))


def test_settings_that_were_tuned_hold_for_their_arm_alone(file, tmp_path):
    chosen = tmp_path / "chosen.json"
    chosen.write_text(json.dumps({"arms": {"criticality": {"lr": 0.7}}}))
    for source in (FILE + "tuned: {criticality: {lr: 0.7}}\n", FILE + f"tuned: {chosen}\n"):
        file.write_text(source)
        found = {(task.label, task.recipe.lr) for task in read_sweep(str(file)).tasks}
        assert found == {("dense", 0.1), ("magnitude", 0.1), ("criticality", 0.7)}
    file.write_text(FILE)
    found = {task.label: task.recipe.lr for task in read_sweep(str(file), ["--tuned", str(chosen)]).tasks}
    assert found["criticality"] == 0.7
    for source, words in (
        (FILE + "tuned: {set: {lr: 0.7}}\n", "tuned names 'set', which is no arm; the arms are dense, magnitude"),
        (FILE + "tuned: nowhere.json\n", "cannot read the tuned settings 'nowhere.json'"),
        (FILE + "tuned: {criticality: 0.7}\n", "tuned must be `arm: {key: value, ...}`"),
    ):
        file.write_text(source)
        with pytest.raises(UserError, match=words):
            read_sweep(str(file))


def test_the_best_of_a_grid_is_chosen_on_held_out_images_and_never_on_the_test_split(file):
    file.write_text(TUNED)
    found = read_tuning(str(file), ["--out", str(file.parent / "runs")])
    with pytest.raises(UserError, match="is not finished"):
        tried(found, ("lr",))
    for task in found.tasks:
        folder = task.folder
        folder.path.mkdir(parents=True)
        folder.record.write_text("{}")  # holds no accuracy of the test split at all
        better = 0.1 if task.label == "magnitude" else 0.2
        ends = 0.8 if task.recipe.lr == better else 0.7
        lines = [{"phase": "pruned", "val_accuracy": value} for value in (0.9, ends + 0.01 * (task.recipe.seed == 101))]
        folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    points = tried(found, ("lr",))
    said = as_dict(points)
    assert said["arms"] == {"magnitude": {"lr": 0.1}, "criticality": {"lr": 0.2}}
    assert points["magnitude"][0].accuracy == pytest.approx(0.805)
    assert points["magnitude"][0].seeds == (100, 101)
    assert len(said["tried"]["criticality"]) == 2
    found.tasks[0].folder.metrics.write_text(json.dumps({"phase": "pruned", "val_accuracy": None}) + "\n")
    with pytest.raises(UserError, match="held out no images to choose by"):
        tried(found, ("lr",))


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "study").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_sweeps_of_the_study_can_be_read(path, monkeypatch):
    monkeypatch.chdir(path.parents[1])
    if path.stem == "mechanism":
        load(str(path))
        return
    sweep = read_sweep(str(path))
    assert sweep.reference in {task.label for task in sweep.tasks}
    if not path.stem.startswith(("deep", "recovery")):
        return
    # Arms that differ in one thing: what decides a fair comparison is the same for all of them.
    pruned = [task.recipe for task in sweep.tasks if task.recipe.method != "dense"]
    assert len({(r.T, r.batch, r.data.name, r.data.validation, r.regrow_exclude) for r in pruned}) == 1
    assert all(r.settings.get("start_value", "zero") == "zero" for r in pruned)
    assert all(r.settings.get("batches", 1) == 1 for r in pruned)
    longer = {task.label for task in sweep.tasks if task.recipe.epochs != sweep.tasks[0].recipe.epochs}
    assert longer <= {"Early-Bird", "EB + ET", "IMP, whole rounds", "IMP + ET, whole rounds"} | {
        "IMP + ET of one step, whole rounds"
    }


@pytest.mark.parametrize(("name", "turnovers"), [("fashion", 0.34), ("recovery", 12.4), ("recovery_digits", 10)])
def test_turnovers_after_the_last_mask_update_are_those_that_the_page_tells(name, turnovers, monkeypatch):
    root = Path(__file__).parents[2]
    monkeypatch.chdir(root)
    task = next(t for t in read_sweep(str(root / "study" / f"{name}.yaml")).tasks if t.label == "criticality")
    laid_out = lay_out(task.recipe, 1442 if "digits" in name else 8000)
    momentum, decay = task.recipe.optim.momentum, task.recipe.optim.weight_decay
    last = laid_out.schedule.steps()[-1]
    summed = sum(learning_rate(task.recipe, step, laid_out) for step in range(last, laid_out.steps))
    assert 2 * decay * summed / (1 - momentum) == pytest.approx(turnovers, abs=0.1 if turnovers < 1 else 0.5)
