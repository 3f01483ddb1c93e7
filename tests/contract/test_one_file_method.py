"""A method is one file: with it in a folder it is listed, documented, run, swept and tested; nothing else is edited."""

import json
import os
import runpy
import sys
from pathlib import Path

import pytest

from forked import Forked
from spikeprune.cli.main import main
from spikeprune.core.errors import UserError
from spikeprune.methods import registry

ROOT = Path(__file__).parents[2]
FILE = ROOT / "examples" / "methods" / "scaled_magnitude.py"
NAME = "scaled-magnitude"
PAGE = ROOT / "docs" / "methods_page.py"
TINY = ["--model", "mlp", "--epochs", "1", "--data.limit", "64", "--data.test_limit", "32", "--batch", "16", "--T", "2"]
TINY += ["--baseline", "false", "--precision", "fp32"]
NEXT = "----- the next command"
CONTRACT = ROOT / "tests" / "contract" / "test_methods.py"


def use_it(out: str) -> int:
    """The contract tests and four commands, as in a new process that knows the folder."""
    registry._load_all.cache_clear()
    sys.modules.pop(CONTRACT.stem, None)
    os.environ.pop("PYTEST_ADDOPTS", None)
    status = int(pytest.main(["-q", "-n", "0", "-p", "no:cacheprovider", str(CONTRACT), "-k", NAME]))
    commands = [
        ["list", "methods"],
        ["run", "digits", "--method", NAME, "--power", "1.5", *TINY, "--out", out],
        ["sweep", "digits", "--methods", f"magnitude,{NAME}", "--power", "0,1", *TINY, "--dry-run"],
    ]
    for words in commands:
        print(NEXT)
        status |= main(words)
    print(NEXT)
    print(runpy.run_path(str(PAGE))["methods_page"]())
    return status


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What the contract tests and four commands print in a process that knows the folder."""
    out = str(tmp_path_factory.mktemp("one-file"))
    done = Forked(lambda: use_it(out), {"SPIKEPRUNE_METHODS": str(FILE.parent)}).wait()
    assert done.status == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout.split(f"{NEXT}\n")


def test_the_file_is_short():
    assert len(FILE.read_text().splitlines()) < 100


def test_the_contract_tests_take_it_up(told):
    assert told[0].split()[0] == "." * 11, "every contract test that is made for each method"


def test_it_is_listed_among_the_others(told):
    names = [line for line in told[1].splitlines() if not line.startswith(" ")]  # descriptions are indented
    assert NAME in names
    assert names == sorted(names)
    assert len(names) == len(registry.names()) + 1


def test_it_has_its_part_of_the_page_of_methods(told):
    page = told[4]
    assert f"| [{NAME}](#{NAME}) | Keep the largest weights, each layer's scaled by its fan-in; bring nothing" in page
    part = page.split(f"## {NAME}\n")[1].split("\n## ")[0]
    assert "    score = |w| * fan_in^power" in part
    assert "| `power` | `0.5` | 0 is plain magnitude; 0.5 undoes" in part
    assert "- source: an example of ours" in part


def test_it_runs_with_its_own_setting(told):
    record = json.loads((Path(told[2].splitlines()[-1]) / "record.json").read_text())
    assert record["settings"]["method"] == NAME
    assert record["settings"]["power"] == 1.5
    assert record["pruned"]["alive"] == record["rounds"][-1]["kept"]


def test_a_sweep_takes_it_and_lists_of_its_setting(told):
    """Magnitude takes no notice of `power`, so it is one run, not two."""
    runs = [line for line in told[3].splitlines() if "to do" in line]
    assert sum(f" {NAME}, sparsity" in line for line in runs) == 2
    assert sum(" magnitude, sparsity" in line for line in runs) == 1


def test_the_page_of_methods_is_current():
    told = "docs/methods.md is not what the registry says; `python docs/methods_page.py`"
    assert (ROOT / "docs" / "methods.md").read_text(encoding="utf-8") == runpy.run_path(str(PAGE))["methods_page"](), (
        told
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "which is no folder"), ("import no_such_module_here", "broken.py cannot be imported: ModuleNotFoundError")],
)
def test_a_folder_or_file_that_is_none_is_named(content, message, tmp_path, monkeypatch):
    folder = tmp_path / "methods"
    if content is not None:
        folder.mkdir()
        (folder / "broken.py").write_text(content)
    monkeypatch.setenv("SPIKEPRUNE_METHODS", str(folder))
    registry._load_all.cache_clear()
    try:
        with pytest.raises(UserError, match=message):
            registry.names()
    finally:
        monkeypatch.undo()
        registry._load_all.cache_clear()
