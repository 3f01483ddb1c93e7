"""The study's page: made from the result files alone, and what stands in docs/ is what they say."""

import contextlib
import importlib.util
import io
import json
import re
import sys
from pathlib import Path

import pytest

from records import write_run
from spikeprune.cli.main import main
from spikeprune.core.errors import UserError

ROOT = Path(__file__).parents[2]


def _script():
    sys.path.insert(0, str(ROOT / "study"))  # where the page's parts lie
    spec = importlib.util.spec_from_file_location("study_page", ROOT / "study" / "page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


pages = _script().pages


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A repository with one result, of three seeds at two sparsities, its sweep's file and the conclusions."""
    tmp_path = tmp_path_factory.mktemp("repository")
    for seed in range(3):
        write_run(tmp_path / "runs", 0.9, "method=dense", "sparsity=0", f"seed={seed}")
        for sparsity in (0.9, 0.95):
            write_run(tmp_path / "runs", 0.8 + 0.02 * seed, "method=magnitude", f"sparsity={sparsity}", f"seed={seed}")
            counts = {"step": 5, "target": 0.9, "kept": 50, "regrown": 40, "rescued": 0}
            rounds = [{**counts, "survived": 10}, {**counts, "survived": None}]
            words = ("method=criticality", f"sparsity={sparsity}", f"seed={seed}")
            write_run(tmp_path / "runs", [0.81, 0.84, 0.84][seed], *words, rounds=rounds, train_macs_effective=2e8)
    write_run(tmp_path / "runs", 0.5, "method=random", "sparsity=0.95", "seed=0", "epochs=8")
    (tmp_path / "study" / "results").mkdir(parents=True)
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        assert main(["compare", str(tmp_path / "runs"), "--reference", "magnitude", "--json"]) == 0
    (tmp_path / "study" / "results" / "tiny.json").write_text(told.getvalue())
    (tmp_path / "study" / "tiny.yaml").write_text("# What a tiny study asks.\n#   spikeprune sweep tiny\nseeds: [0]\n")
    (tmp_path / "study" / "conclusions.md").write_text(
        "**In five sentences.** One.\n\nNothing follows from runs made by hand.\n"
    )
    return tmp_path


def test_the_page_holds_words_settings_results_costs_and_pictures(root):
    made = pages(root)
    text = made[root / "docs" / "study.md"]
    assert text.startswith("# The study\n\n**In five sentences.** One.\n\nIs regrowth")
    assert "## What it says\n\nNothing follows from runs made by hand.\n" in text
    assert "What a tiny study asks." in text
    assert "```sh\nspikeprune sweep tiny\n```" in text
    assert "- images: 100 train, 50 test; network: `mlp`" in text
    assert "- epochs 4, T 4, batch 128, lr 0.1, weight decay 0.0001, precision auto\n" in text
    assert "- epochs 4 (8: random), T 4," in text
    assert "- seeds: 0, 1, 2\n- made on: a processor, 1 thread, fp32; spikeprune 0.1.0, torch 2.13.0" in text
    for sparsity in ("0.9", "0.95"):
        part = text.split(f"### digits, mlp, sparsity {sparsity}\n")[1].split("###")[0]
        first, second, third = [line for line in part.splitlines() if re.match(r"\| (dense|mag|crit)", line)][:3]
        assert first.startswith("| dense | 3 | 0.0000 | 90.00 | 0.00 |")
        assert second.startswith(
            f"| criticality | 3 | {float(sparsity):.4f} | 83.00 ± 4.30 | 1.73 | +1.00 ± 2.48 | 0.225"
        )
        assert second.endswith("| 25.0 | 100 |" if sparsity == "0.9" else "| 25.0 | 50.0 | equal |")
        assert third.startswith("| magnitude | 3 |")
        assert "corrected for the 1 test against magnitude in this table" in part
        assert "| criticality | 2.5 | 4 | 1.00 G | 200 M | 6.0 | 10.0 | 0.10 |" in part
    assert "11.3 = 2260/200" in text
    assert not re.search(r"\bnan\b|\bNone\b", text)
    pictures = re.findall(r"\(images/(.+?)\)", text)
    assert pictures == [f"study-tiny-{n}{kind}.svg" for n in (1, 2) for kind in ("-differences", "")]
    assert {path.name for path in made} == {"study.md", *pictures}
    assert all("criticality" in made[root / "docs" / "images" / name] for name in pictures)


def test_without_results_or_with_a_damaged_one_it_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match="holds no result"):
        pages(tmp_path)
    (tmp_path / "study" / "results").mkdir(parents=True)
    (tmp_path / "study" / "results" / "tiny.json").write_text(json.dumps({"rows": []}))
    with pytest.raises(UserError, match="this is no comparison"):
        pages(tmp_path)


def test_the_page_in_docs_is_what_the_results_say():
    for path, text in pages(ROOT).items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is stale; run `python study/page.py`"
