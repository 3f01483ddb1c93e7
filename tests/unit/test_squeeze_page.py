"""The page of the squeeze study is what its results say."""

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def _script(name):
    spec = importlib.util.spec_from_file_location(f"squeeze_study_{name}", ROOT / "study" / "squeeze" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def lines():
    text = (ROOT / "study" / "squeeze" / "results.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_the_page_is_up_to_date(lines):
    said = (ROOT / "docs" / "squeeze.md").read_text(encoding="utf-8")
    assert said == _script("page").page(lines), "run `python study/squeeze/page.py`"


def _line(seed, draw, accuracy, settings, sparsity=0.95, images=2000):
    return {
        "network": f"fashion-small-{seed}" if seed else "fashion-small", "sparsity": sparsity, "draw": draw,
        "settings": settings, "split": "test", "accuracy": accuracy, "images": images, "agreement": 0.9,
        "reached": sparsity, "cpu_seconds": 1.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("gains", "words"),
    [
        ((0.01, 0.02, 0.03), "+2.00 points +- 2.48 over 3 trained seeds; not decided, 0 is inside."),
        ((0.01, 0.011, 0.012), "+1.10 points +- 0.25 over 3 trained seeds; it is ahead."),
        ((-0.01, -0.011, -0.012), "-1.10 points +- 0.25 over 3 trained seeds; it is behind."),
        ((0.05,), "+5.00 points in a single one of the trained seeds, which decides nothing."),
    ],
)
def test_the_verdict_follows_the_paired_interval(gains, words):
    lines = [_line(0, -1, 0.9, {}, 0.0)]
    for seed, gain in enumerate(gains):
        base = 0.6 + 0.1 * seed
        lines += [_line(seed, 0, base, {"weighting": "none"}), _line(seed, 0, base + gain, {})]
    assert words in _script("page").page(lines)


def test_draws_of_a_seed_count_once():
    lines = [_line(0, -1, 0.9, {}, 0.0), _line(0, 0, 0.80, {}), _line(0, 1, 0.84, {}), _line(1, 0, 0.86, {})]
    lines += [_line(*pair, 0.80, {"weighting": "none"}) for pair in ((0, 0), (0, 1), (1, 0))]
    said = _script("page").page(lines)
    assert "+4.00 points +- 25.41 over 2 trained seeds" in said  # (0 + 4) / 2 = 2 and 6; t(0.975, 1) = 12.706
    assert "| default | 84.00 +- 25.41 |" in said


def test_goals_are_told_on_all_test_images():
    lines = [_line(seed, -1, 0.9, {}, 0.0, 10_000) for seed in (0, 1)]
    lines += [_line(0, 0, 0.88, {}, 0.90, 10_000), _line(1, 0, 0.89, {}, 0.90, 10_000)]
    assert "| default | 90 % | 88.50 | 1.50 +- 6.35 | 1.3 | 1 | 2 |" in _script("page").page(lines)


def test_draws_that_choose_are_never_published():
    draws = {}
    for job in _script("run").jobs():
        draws.setdefault(job.split, set()).add(job.draw)
    assert draws == {"test": {0, 1, 2, 3, 4}, "validation": {100}}


def test_lines_of_other_numbers_of_images_are_left_out():
    lines = [_line(0, -1, 0.9, {}, 0.0), _line(0, 0, 0.6, {}), _line(0, 1, 0.7, {}, images=1000)]
    assert "| default | 60.00 |" in _script("page").page(lines)


def test_the_page_says_what_is_not_measured():
    said = _script("page").page([_line(0, -1, 0.9, {}, 0.0), _line(0, 0, 0.6, {})])
    assert "planned squeezes 1 are measured. Nothing is measured yet of: cifar10-resnet at 80 % (test)" in said


def test_the_guide_has_the_frameworks_figures():
    guide = (ROOT / "docs" / "guide" / "squeeze.md").read_text(encoding="utf-8")
    found = json.loads((ROOT / "study" / "squeeze" / "frameworks.json").read_text(encoding="utf-8"))
    assert len(found) == 3
    for name, x in found.items():
        cells = (name, *(f"{x[key]:.1f}" for key in ("dense", "magnitude", "squeezed")), f"{x['seconds']:.0f}")
        assert f"| {' | '.join(cells)} |" in guide


def test_the_acceleration_is_that_of_the_decision_and_of_the_whole():
    def line(arm, epochs, deciding, seconds, accuracy):
        return {
            "arm": arm, "epochs": epochs, "deciding_seconds": deciding, "cpu_seconds": seconds, "accuracy": accuracy
        }  # fmt: skip

    both = [line("squeeze", 1, 5.0, 20.0, 0.88), line("magnitude", 5, 70.0, 100.0, 0.89)]
    said = "\n".join(_script("sections").acceleration(both))
    assert "| 1 | 5 | 5 | 70 | 14.0 | 20 | 100 | 5.0 | 88.00 | 89.00 |" in said
    assert _script("sections").acceleration(both[:1]) == []


def test_the_table_of_the_decision_is_what_was_measured():
    lines = [json.loads(line) for line in (ROOT / "study/squeeze/apart.jsonl").read_text().splitlines()]
    assert all(line["split"] == "validation" for line in lines)
    columns = (("cifar10-resnet", 0.98), ("fashion-small", 0.98), ("fashion-small", 0.95))
    told = (ROOT / "docs/decisions/0019-squeeze-defaults.md").read_text()
    settings = {json.dumps(line["settings"]) for line in lines}
    assert len(settings) == 6
    for setting in settings:
        mine = [line for line in lines if json.dumps(line["settings"]) == setting]
        cells = [
            ", ".join(f"{100 * x['accuracy']:.1f}" for x in mine if (x["network"], x["sparsity"]) == column)
            for column in columns
        ]
        assert f" | {' | '.join(cells)} |\n" in told
