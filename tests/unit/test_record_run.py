"""Files of a run folder: what 0.1.0 wrote is read and written back byte for byte, and impossible values are refused."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from spikeprune.lab.study import compare
from spikeprune.lab.sweep import sweep
from spikeprune.record import analysis
from spikeprune.record.base import Damaged
from spikeprune.record.epoch import read_epochs
from spikeprune.record.run import RunRecord
from spikeprune.record.schema import SCHEMA
from spikeprune.record.statistics import StatisticsRecord

FOLDERS = sorted(path.parent for path in (Path(__file__).parents[1] / "fixtures" / "0.1.0").rglob("record.json"))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_what_0_1_0_wrote_is_written_back_byte_for_byte(folder):
    record, statistics = folder / "record.json", folder / "statistics.json"
    assert RunRecord.of_file(record).as_json(indent=2) + "\n" == record.read_text()
    assert StatisticsRecord.of_file(statistics).as_json(indent=1) + "\n" == statistics.read_text()
    metrics = folder / "metrics.jsonl"
    assert "".join(epoch.as_json() + "\n" for epoch in read_epochs(metrics)) == metrics.read_text()


@pytest.fixture
def content():
    return json.loads((FOLDERS[0] / "record.json").read_text())


def test_there_are_fixtures_and_their_values_are_typed(content):
    record = RunRecord.read(content)
    assert record.pruned.alive == content["pruned"]["alive"] == record["pruned"]["alive"]
    assert record.rounds[0].kept == content["rounds"][0]["kept"]
    assert record.settings.method == content["settings"]["method"]
    assert record.accuracy == content["pruned"]["accuracy"]


def test_keys_of_a_later_version_survive_at_every_depth(content):
    content |= {"later": {"rounds": 3, "tolerance": None}}
    content["pruned"]["joules"] = [1.5, None]
    content["rounds"][0]["seconds"] = 0.25
    content["settings"]["new_setting"] = "text"
    assert json.loads(RunRecord.read(content).as_json()) == content


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        (("pruned", "alive"), -1, "pruned.alive is -1, must be 0 or more"),
        (("pruned", "alive"), 10.5, "pruned.alive is 10.5, must be a whole number"),
        (("dense", "macs"), float("inf"), "dense.macs is inf, must be a finite number"),
        (("sparsity",), 95, r"sparsity is 95, must be in [0, 1]"),
        (("pruned", "accuracy"), None, "pruned.accuracy is null"),
        (("data", "counts"), {"train": 1}, "data.counts.validation is missing"),
        (("environment", "versions"), {}, "environment.versions.spikeprune is missing"),
        (("environment", "threads"), "two", "environment.threads is 'two', must be a whole number"),
        (("rounds",), 3, "rounds is 3, must be a list"),
        (("cost", "seconds"), None, "cost.seconds is None, must be a finite number"),
        (("schema",), SCHEMA + 1, "written by a later version"),
    ],
)
def test_impossible_values_are_refused_by_file_and_key(tmp_path, content, place, value, says):
    part = content
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    path = tmp_path / "record.json"
    path.write_text(json.dumps(content))
    with pytest.raises(Damaged, match=re.escape(says)) as caught:
        RunRecord.of_file(path)
    message = str(caught.value)
    assert message.startswith(f"{path} is damaged")
    assert "\n" not in message
    assert 20 <= len(message) - len(str(path)) <= 300


def test_what_could_not_be_read_again_is_not_written(content):

    record = RunRecord.read(content)
    wrong = dataclasses.replace(record, cost=dataclasses.replace(record.cost, seconds=float("nan")))
    with pytest.raises(ValueError, match=r"cost\.seconds is nan"):
        wrong.as_json()


def test_the_line_of_a_damaged_epoch_is_counted_from_1(tmp_path):
    lines = (FOLDERS[0] / "metrics.jsonl").read_text().splitlines()
    path = tmp_path / "metrics.jsonl"
    path.write_text("\n".join([lines[0], lines[0], lines[0].replace('"epoch": 1', '"epoch": -1')]))
    with pytest.raises(Damaged, match=r"line 3\.epoch is -1, must be 0 or more"):
        read_epochs(path)
    path.write_text("")
    with pytest.raises(Damaged, match="it holds no epoch"):
        read_epochs(path)


def test_the_numbers_of_the_formats():
    """A key that goes or changes its meaning raises the number, and nothing else does: readers refuse later ones."""
    assert (SCHEMA, analysis.SCHEMA, compare.SCHEMA, sweep.SCHEMA) == (1, 2, 2, 1)
