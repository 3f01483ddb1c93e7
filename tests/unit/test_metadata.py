"""What stands in more than one file of the project agrees."""

import re
import runpy
import shutil
import tomllib
from pathlib import Path

import pytest
import yaml

import spikeprune

ROOT = Path(__file__).parents[2]


def test_the_version_stands_in_one_place_and_the_citation_repeats_it():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "version" not in project
    assert project["dynamic"] == ["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == spikeprune.__version__
    assert citation["license"] == project["license"]
    headings = re.findall(r"^## (\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert spikeprune.__version__ in headings
    assert headings == sorted(headings, reverse=True)


def test_the_conda_recipe_repeats_version_and_requirements():
    recipe = (ROOT / "packaging/conda/recipe.yaml").read_text()
    assert f'version: "{spikeprune.__version__}"' in recipe
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ours = {need.partition(";")[0].strip().replace("torch", "pytorch", 1) for need in project["dependencies"]}
    run = yaml.safe_load(recipe)["requirements"]["run"][1:]  # the first is Python
    assert {need.replace(" ", "").lower() for need in ours} == {need.replace(" ", "").lower() for need in run}
    assert f'python_min: "{project["requires-python"].removeprefix(">=")}"' in recipe


def test_types_are_announced():
    assert Path(spikeprune.__file__).with_name("py.typed").exists()


@pytest.mark.parametrize("name", ["README.md", "SECURITY.md", "SUPPORT.md", "CONTRIBUTING.md"])
def test_files_that_are_linked_exist(name):
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / name).read_text())
    missing = [target for target in targets if not (ROOT / target).exists()]
    assert not missing


def test_the_forms_of_issues_are_read():
    for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"):
        form = yaml.safe_load(path.read_text())
        if path.name != "config.yml":
            assert form["name"], path.name
            ids = [part["id"] for part in form["body"]]
            assert len(set(ids)) == len(ids), path.name


def test_the_readme_claims_no_index():
    assert not re.search(r"pip install [\"']?spikeprune(?!\[demo\] @ git)", (ROOT / "README.md").read_text())


def test_the_readme_shows_the_entry_that_cite_prints():
    entry = spikeprune.cite().partition("\n\n")[2]
    assert entry.startswith("@software{spikeprune,")
    assert entry in (ROOT / "README.md").read_text()


def test_a_version_is_set_in_all_places_or_in_none(tmp_path):
    script = runpy.run_path(str(ROOT / "packaging/set_version.py"))
    names = {name for name, _, _ in script["PLACES"]}
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    log = tmp_path / "CHANGELOG.md"
    log.write_text("# Changelog\n\n## 7.8.9 (unreleased)\n\n## 0.1.0 (unreleased)\n")
    before = {name: (tmp_path / name).read_text() for name in names}
    for wrong in (("7.8", "2026-12-01"), ("7.8.9", "tomorrow"), ("7.8.10", "2026-12-01")):
        with pytest.raises(SystemExit, match=r"three whole numbers|written as|must have one line"):
            script["set_version"](tmp_path, *wrong)
        assert {name: (tmp_path / name).read_text() for name in names} == before
    script["set_version"](tmp_path, "7.8.9", "2026-12-01")
    assert log.read_text() == "# Changelog\n\n## 7.8.9 (2026-12-01)\n\n## 0.1.0 (unreleased)\n"
    citation = yaml.safe_load((tmp_path / "CITATION.cff").read_text())
    assert (citation["version"], str(citation["date-released"])) == ("7.8.9", "2026-12-01")
    for name in names - {"CHANGELOG.md"}:
        assert "7.8.9" in (tmp_path / name).read_text()
