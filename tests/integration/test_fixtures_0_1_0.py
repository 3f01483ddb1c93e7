"""What version 0.1.0 left on disk is opened, continued, reported and compared by this version.

The files and how they were made: tests/fixtures/0.1.0/README.md. Sums of floats depend on the processor and on the
version of PyTorch, so digests are compared only on the kind of machine that made the files; the rest runs everywhere.
"""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import spikeprune as sp
from spikeprune.cli.main import main
from spikeprune.lab.train import measure

FILES = Path(__file__).parents[1] / "fixtures" / "0.1.0"
MADE_BY = json.loads((FILES / "killed" / "ends-with.json").read_text())["environment"]


def same_machine() -> bool:
    """Whether the processor, with its instructions, and PyTorch are those that made the files."""
    cpu = Path("/proc/cpuinfo")
    named = cpu.is_file() and f": {MADE_BY['device']}\n" in cpu.read_text()
    alike = torch.__version__ == MADE_BY["versions"]["torch"] and torch.backends.cpu.get_cpu_capability() == "AVX2"
    return named and alike


def test_the_files_hold_no_pickle_and_no_path_of_a_machine():
    for path in FILES.rglob("*"):
        if path.is_file() and path.name not in ("README.md", "make.py"):
            content = path.read_bytes()
            assert not any(word in content for word in (b"/home/", b"/Users/", b"/tmp/")), path
            if path.suffix != ".pt":
                assert not content.startswith((b"PK", b"\x80")), path


def command(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """What a command prints; it must succeed."""
    capsys.readouterr()
    assert main([str(word) for word in words]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A copy of the finished run."""
    (folder,) = (FILES / "finished").iterdir()
    return Path(shutil.copytree(folder, tmp_path / "runs" / folder.name))


def test_a_finished_run_is_opened(finished, capsys):
    record = json.loads((finished / "record.json").read_text())
    result = json.loads(command(capsys, "eval", finished, "--json"))
    tolerance = 0 if same_machine() else 0.01
    assert result["accuracy"] == pytest.approx(record["pruned"]["accuracy"], abs=tolerance)
    assert result["accuracy"] > 0.9
    assert result["alive"] == record["pruned"]["alive"] == 2896
    masks, weights = (load_file(finished / f"{name}.safetensors") for name in ("masks", "model"))
    assert all((weights[name] != 0).le(mask).all() for name, mask in masks.items())


def test_a_finished_run_is_reported(finished, capsys):
    command(capsys, "report", finished)
    page = (finished / "report.html").read_text()
    record = json.loads((finished / "record.json").read_text())
    assert f"{record['pruned']['accuracy']:.1%}"[:3] in page
    assert all(f"{record[side]['alive']:,}" in page for side in ("dense", "pruned"))
    assert "criticality" in page


def test_a_finished_run_is_not_done_again(finished, capsys):
    before = {path.name: path.read_bytes() for path in finished.iterdir() if path.is_file()}
    out = command(capsys, "run", FILES / "tiny.yaml", "--baseline", "true", "--out", finished.parent)
    assert out.splitlines()[-1] == str(finished), "the hash of these settings has changed"
    assert {path.name: path.read_bytes() for path in finished.iterdir() if path.name in before} == before
    assert [path.name for path in finished.parent.iterdir()] == [finished.name]


@pytest.fixture(scope="module")
def continued(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The killed run, continued to its end."""
    (folder,) = (path for path in (FILES / "killed").iterdir() if path.is_dir())
    there = tmp_path_factory.mktemp("killed")
    target = Path(shutil.copytree(folder, there / folder.name))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "_COUNTED", 1000)  # as many as the old version counted; conftest.py takes fewer
        assert main(["run", str(FILES / "tiny.yaml"), "--out", str(there)]) == 0
    assert [path.name for path in there.iterdir()] == [folder.name], "the hash of these settings has changed"
    return target


def test_a_killed_run_is_continued(continued):
    (folder,) = (path for path in (FILES / "killed").iterdir() if path.is_dir())
    before = (folder / "metrics.jsonl").read_text()
    after = (continued / "metrics.jsonl").read_text()
    assert after.startswith(before), "the first epochs were trained again"
    assert [json.loads(line)["epoch"] for line in after.splitlines()] == [1, 2, 3, 4]
    record = json.loads((continued / "record.json").read_text())
    ends = json.loads((FILES / "killed" / "ends-with.json").read_text())
    assert record["status"] == "finished"
    assert record["sparsity"] == 0.9
    assert record["pruned"]["alive"] == ends["pruned"]["alive"]
    assert [(r["step"], r["target"], r["kept"]) for r in record["rounds"]] == [
        (r["step"], r["target"], r["kept"]) for r in ends["rounds"]
    ]


@pytest.mark.skipif(not same_machine(), reason="digests of floats hold on the processor and PyTorch that made them")
def test_a_continued_run_ends_bit_for_bit_as_the_old_version_did(continued):
    ends = json.loads((FILES / "killed" / "ends-with.json").read_text())
    for name, digests in ends["digests"].items():
        tensors = load_file(continued / f"{name}.safetensors")
        assert digests == {key: hashlib.sha256(tensors[key].numpy().tobytes()).hexdigest() for key in sorted(tensors)}
    record = json.loads((continued / "record.json").read_text())
    assert [{key: now[key] for key in old} for now, old in zip(record["rounds"], ends["rounds"], strict=True)] == ends[
        "rounds"
    ]
    assert {key: record["pruned"][key] for key in ends["pruned"]} == ends["pruned"]


def test_a_sweep_is_compared_and_not_done_again(tmp_path, capsys):
    out = Path(shutil.copytree(FILES / "sweep", tmp_path / "runs"))
    (listed,) = out.glob("sweep-*.json")
    records = {path: path.read_bytes() for path in out.glob("*/record.json")}
    table = json.loads(command(capsys, "compare", listed, "--json"))
    rows = {row["label"]: row for row in table["rows"]}
    assert sorted(rows) == ["criticality", "magnitude"]
    for label, row in rows.items():
        found = [json.loads(text) for text in records.values()]
        own = [one["pruned"]["accuracy"] for one in found if one["settings"]["method"] == label]
        assert row["seeds"] == [0, 1]
        assert row["values"]["accuracy"]["mean"] == pytest.approx(sum(own) / 2, abs=1e-12)
    again = command(capsys, "sweep", FILES / "sweep.yaml", "--out", out)
    assert "4 runs, 4 of them finished before" in again
    assert again.splitlines()[-1] == str(listed)
    assert {path: path.read_bytes() for path in out.glob("*/record.json")} == records


@pytest.mark.parametrize("precision", ["fp32", "int16"])
def test_a_compiled_network_gives_what_it_gave(precision):
    tensors = load_file(FILES / "compiled" / "tensors.safetensors")
    network = sp.load(FILES / "compiled" / f"{precision}.snn")
    assert network.precision == precision
    spikes = {
        name.removeprefix(f"{precision} "): value for name, value in tensors.items() if name.startswith(f"{precision} ")
    }
    assert len(spikes) == 2
    found = network.trace(tensors["x"])
    assert found.keys() == spikes.keys()
    for name, value in spikes.items():
        assert 0.05 < value.mean() < 0.95
        assert torch.equal(found[name], value), name
    out = network(tensors["x"])
    if same_machine():
        assert torch.equal(out, tensors[precision])
    torch.testing.assert_close(out, tensors[precision])
