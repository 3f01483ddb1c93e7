"""No command executes code that a run folder names or holds, unless the user trusts the folder or names the code."""

import shutil
import sys
from pathlib import Path

import pytest

from spikeprune.cli.main import main
from spikeprune.core.errors import InvalidValue
from spikeprune.host.objects import resolve_object

FINISHED = Path(__file__).parents[1] / "fixtures" / "0.1.0" / "finished" / "tiny-7ecc3f540e"
EVIL = "from pathlib import Path\nPath({marker!r}).write_text('executed')\n"
# Code as a user would write it: it says that it ran, and builds the network of the run.
OWN = (
    EVIL
    + """
import spikeprune

def build(classes, T, size, in_channels):
    return spikeprune.model("digits-conv", classes=classes, T=T, size=size)

def loaders(T, seed):
    return spikeprune.data.load("digits", None, T=T, seed=seed)
"""
)
COMMANDS = {
    "eval": ["eval", "RUN"],
    "bench": ["bench", "RUN", "--batch", "2", "--repeats", "1", "--threads", "1"],
    "shrink": ["shrink", "RUN"],
    "export compiled": ["export", "RUN", "--to", "compiled"],
    "export safetensors": ["export", "RUN", "--to", "safetensors"],
    "export nir": ["export", "RUN", "--to", "nir"],
    "export onnx": ["export", "RUN", "--to", "onnx"],
    "analyze": ["analyze", "RUN", "--images", "20"],
    "analyze against": ["analyze", "GOOD", "--against", "RUN", "--images", "20"],
    "squeeze": ["squeeze", "RUN", "--sparsity", "0.9", "--out", "squeezed"],
    "run": ["run", "RUN/recipe.yaml", "--seed", "7"],
    "dry run": ["run", "RUN/recipe.yaml", "--seed", "7", "--dry-run"],
    "sweep": ["sweep", "RUN/recipe.yaml", "--seeds", "7"],
    "sweep, dry": ["sweep", "RUN/recipe.yaml", "--seeds", "7", "--dry-run"],
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working folder with a run folder `run1` that someone sent, and a good one; imports are undone."""
    shutil.copytree(FINISHED, tmp_path / "run1")
    shutil.copytree(FINISHED, tmp_path / "good")
    (tmp_path / "run1" / "evil.py").write_text(EVIL.format(marker=str(tmp_path / "executed")))
    (tmp_path / "own_code_of_mine.py").write_text(OWN.format(marker=str(tmp_path / "executed")))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("evil", "run1", "own_code_of_mine"):
            del sys.modules[name]


def names(folder, key, value):
    """The recipe of the folder says `key: value` from now on."""
    recipe = folder / "recipe.yaml"
    text = recipe.read_text()
    old = {"model": "model: digits-conv", "data.name": "data:\n  name: digits"}[key]
    assert text.count(old) == 1
    recipe.write_text(text.replace(old, f"{old.rpartition(': ')[0]}: {value}"))


def words_of(command, folder="run1"):
    return [word.replace("RUN", folder).replace("GOOD", "good") for word in COMMANDS[command]]


def refused(capsys, words):
    status = main(words)
    said = capsys.readouterr().err.splitlines()
    assert status == 2
    assert len(said) == 1
    assert len(said[0]) < 400
    return said[0]


@pytest.mark.parametrize("key", ["model", "data.name"])
@pytest.mark.parametrize("command", COMMANDS)
def test_code_that_a_run_folder_names_is_not_run_unasked(place, capsys, command, key):
    names(place / "run1", key, "run1.evil:build")
    said = refused(capsys, words_of(command))
    assert f"{key}: run1.evil:build" in said
    assert "--trust" in said
    assert f"--{key}" in said
    assert not (place / "executed").exists()
    assert str(place) not in sys.path


@pytest.mark.parametrize("command", COMMANDS)
def test_code_that_a_run_folder_holds_is_never_run(place, capsys, command):
    names(place / "run1", "model", "run1.evil:build")
    said = refused(capsys, [*words_of(command), "--trust"])
    assert "lies in the run folder itself" in said
    assert not (place / "executed").exists()


@pytest.mark.parametrize("command", ["eval", "run"])
def test_the_working_folder_is_not_searched_if_it_is_the_run_folder(place, capsys, monkeypatch, command):
    names(place / "run1", "model", "evil:build")
    monkeypatch.chdir(place / "run1")
    assert "no module 'evil'" in refused(capsys, [*words_of(command, "."), "--trust"])
    monkeypatch.setattr(sys, "path", [str(place / "run1"), *sys.path])  # as under `python -m spikeprune`
    assert "lies in the run folder itself" in refused(capsys, [*words_of(command, "."), "--trust"])
    assert not (place / "executed").exists()


def test_a_package_inside_the_run_folder_is_not_run_either(place, capsys):
    (place / "run1" / "__init__.py").write_text((place / "run1" / "evil.py").read_text())
    names(place / "run1", "model", "run1.evil:build")
    assert "'run1' lies in the run folder itself" in refused(capsys, ["eval", "run1", "--trust"])
    assert not (place / "executed").exists()


def test_a_link_in_the_run_folder_and_a_link_into_it_lead_nowhere(place, capsys):
    (place / "elsewhere.py").write_text((place / "run1" / "evil.py").read_text())
    (place / "run1" / "linked.py").symlink_to(place / "elsewhere.py")
    names(place / "run1", "model", "run1.linked:build")
    assert "lies in the run folder itself" in refused(capsys, ["eval", "run1", "--trust"])
    (place / "pointer.py").symlink_to(place / "run1" / "evil.py")
    names(place / "good", "model", "pointer:build")
    shutil.copy(place / "good" / "recipe.yaml", place / "run1" / "recipe.yaml")
    assert "lies in the run folder itself" in refused(capsys, ["eval", "run1", "--trust"])
    assert not (place / "executed").exists()


def test_a_module_that_is_loaded_already_must_lie_elsewhere_too(place):
    resolve_object("run1.evil:Path")
    (place / "executed").unlink()
    with pytest.raises(InvalidValue, match="lies in the run folder itself"):
        resolve_object("run1.evil:Path", outside=place / "run1")


@pytest.mark.parametrize("words", [["--trust"], ["--model", "own_code_of_mine:build"]])
@pytest.mark.parametrize("command", ["eval", "shrink", "export safetensors"])
def test_with_trust_or_a_model_that_the_user_names_it_runs(place, capsys, command, words):
    names(place / "run1", "model", "own_code_of_mine:build")
    assert main([*words_of(command), *words]) == (2 if command == "shrink" else 0), capsys.readouterr().err
    assert (place / "executed").exists()
    assert "so nothing can be cut out" in capsys.readouterr().err or command != "shrink"


def test_data_that_the_user_names_is_read(place, capsys):
    names(place / "run1", "data.name", "run1.evil:loaders")
    assert main(["eval", "run1", "--data.name", "digits"]) == 0, capsys.readouterr().err
    assert not (place / "executed").exists()
    assert main(["eval", "run1", "--data.name", "own_code_of_mine:loaders"]) == 0, capsys.readouterr().err
    assert (place / "executed").exists()


def test_a_recipe_of_the_users_own_needs_no_word_of_trust(place, capsys):
    names(place / "good", "model", "own_code_of_mine:build")
    shutil.copy(place / "good" / "recipe.yaml", place / "mine.yaml")
    assert main(["run", "mine.yaml", "--dry-run"]) == 0, capsys.readouterr().err
    assert (place / "executed").exists()


@pytest.mark.parametrize("command", [["report", "run1"], ["compare", "run1", "good"], ["config", "run1/recipe.yaml"]])
def test_commands_that_build_no_network_run_no_code(place, capsys, command):
    names(place / "run1", "model", "run1.evil:build")
    assert main(command) == 0, capsys.readouterr().err
    assert not (place / "executed").exists()


def test_a_run_into_a_folder_of_folders_executes_nothing_there(place, capsys):
    """`--out` that holds a run folder of the same name: its recipe is compared, and nothing of it is imported."""
    names(place / "run1", "model", "run1.evil:build")
    recipe = (place / "good" / "recipe.yaml").read_text()
    (place / "tiny.yaml").write_text(recipe)
    (place / "out").mkdir()
    (place / "run1").rename(place / "out" / FINISHED.name)
    said = refused(capsys, ["run", "tiny.yaml", "--out", "out"])
    assert "other settings (model is" in said
    assert not (place / "executed").exists()
