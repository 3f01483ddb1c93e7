"""Numbers over seeds, by hand: means, spreads, what is missing, and differences paired by seed."""

from types import SimpleNamespace

import pytest

from records import write_run
from spikeprune.lab.page.analysis import _measured, _parts, _ranked, _styles, _told, _told_cells
from spikeprune.lab.page.charts import styles
from spikeprune.lab.study.analyze import _arms
from spikeprune.lab.study.collected import collect
from spikeprune.lab.study.seeds import QUANTITIES, at, differences, over_seeds
from spikeprune.record.analysis import Spread


def test_every_number_becomes_its_mean_and_spread():
    """1, 2, 6: mean 3, sd sqrt((4 + 1 + 9) / 2) = sqrt 7."""
    found = over_seeds([{"a": 1, "b": [{"c": 0.5}]}, {"a": 2, "b": [{"c": 0.5}]}, {"a": 6, "b": [{"c": 0.5}]}])
    assert found["a"] == {"each": [1, 2, 6], "n": 3, "mean": 3.0, "sd": pytest.approx(7**0.5)}
    assert found["b"] == [{"c": {"each": [0.5, 0.5, 0.5], "n": 3, "mean": 0.5, "sd": 0.0}}]


def test_what_a_run_lacks_is_none_in_its_place_and_counts_not():
    found = over_seeds([{"a": {"x": 1.0}, "b": None}, {"a": None, "b": None}, {"a": {"x": 3.0}}])
    assert found["a"]["x"] == {"each": [1.0, None, 3.0], "n": 2, "mean": 2.0, "sd": pytest.approx(2**0.5)}
    assert found["b"] is None
    assert over_seeds([4.0]) == {"each": [4.0], "n": 1, "mean": 4.0, "sd": None}


def test_text_and_coordinates_stand_where_all_agree():
    found = over_seeds([{"neuron": "a", "epoch": 1, "of": "w", "yes": True}, {"neuron": "a", "epoch": 1, "of": "g"}])
    assert found == {"neuron": "a", "epoch": 1, "of": None, "yes": None}
    assert over_seeds([[1, 2], [1]]) is None


def test_differences_are_those_of_the_seeds_that_both_have():
    """.1, .3 less .0, .1: .1 and .2, mean .15, sd .0707; seed 7 has no partner."""
    mine = {seed: {"accuracy": value} | _empty() for seed, value in ((1, 0.1), (2, 0.3), (7, 0.9))}
    theirs = {seed: {"accuracy": value} | _empty() for seed, value in ((2, 0.1), (1, 0.0))}
    found = differences(mine, theirs)
    assert set(found) == set(QUANTITIES)
    accuracy = found["accuracy"]
    assert (accuracy["seeds"], accuracy["n"]) == ([1, 2], 2)
    assert accuracy["each"] == pytest.approx([0.1, 0.2])
    assert accuracy["mean"] == pytest.approx(0.15)
    assert accuracy["sd"] == pytest.approx(0.5**0.5 / 10)
    assert found["feature cosine"] is None


def _empty():
    return {"survival": None, "consistency": {}, "overfitting": {}, "criticality": {"after_regeneration": None}} | {
        part: dict.fromkeys(path[1] for path in QUANTITIES.values() if path[0] == part)
        for part in ("consistency", "overfitting")
    }


def test_a_place_on_a_way_that_ends_early_is_none():
    assert at({"a": {"b": 2}}, ("a", "b")) == 2
    assert at({"a": None}, ("a", "b", "c")) is None


def test_a_spread_is_told_with_its_deviation():
    assert _told(Spread(each=(), n=3, mean=0.51234, sd=0.01234), ".1%") == "51.2% ± 1.2%"
    assert _told(Spread(each=(), n=3, mean=0.51234, sd=0.01234), "+.4f") == "+0.5123 ± 0.0123"
    assert _told(Spread(each=(2.0,), n=1, mean=2.0, sd=None), ".4g") == "2"
    assert _told(None, ".4g") == "not applicable"


def test_a_panel_ends_with_where_a_number_is_highest_and_whether_that_is_more_than_the_spread():
    parts = [("a", SimpleNamespace(x=0.5)), ("b", SimpleNamespace(x=0.2)), ("c", SimpleNamespace(x=None))]
    assert _ranked(parts, lambda part: part.x, "The share", ".1%") == (
        "The share is highest in a (50.0%) and lowest in b (20.0%)."
    )
    assert _ranked(parts[:1], lambda part: part.x, "The share", ".1%", "Good.") == "The share is 50.0% in a. Good."
    assert _ranked(parts[2:], lambda part: part.x, "The share", ".1%") == ""
    wide = [(n, SimpleNamespace(x=Spread(each=(m,), n=2, mean=m, sd=0.2))) for n, m in (("a", 0.5), ("b", 0.2))]
    assert "within the standard deviations" in _ranked(wide, lambda part: part.x, "The share", ".1%")


def test_the_page_shows_only_what_applies():
    none = "not applicable"
    table = [["run", "network", "a", "b"], ["x", "before", none, none], ["x", "after", "0.5", none]]
    assert _told_cells(table) == [["run", "network", "a"], ["x", "after", "0.5"]]
    apart = [["quantity", "less a", "p (t)"], ["accuracy", "+0.1", "0.2"], ["loss gap", none, "-"]]
    assert _told_cells(apart) == apart[:2]
    assert _measured(["survival: 3 regrown", f"loss gap: {none}"]) == ["Survival: 3 regrown."]


def test_a_part_keeps_its_colour_in_all_figures_of_the_page():
    parts = [(f"{name} (n = 3)", None) for name in ("criticality", "magnitude", "random", "gradient")]
    style = _styles(parts)
    assert style["random (n = 3)"] == styles(["random"])["random"]  # as on the page of a comparison
    assert len(set(style.values())) == 4


def test_arms_of_one_method_are_named_by_what_sets_them_apart(tmp_path):
    for words in (("criticality", "constant"), ("criticality", "decay"), ("magnitude", "decay")):
        for seed in (0, 1):
            method, schedule = words
            write_run(tmp_path, 0.9, f"method={method}", f"regrow_schedule={schedule}", f"seed={seed}")
    runs = [
        SimpleNamespace(compared=run, seed=run.seed, recipe=run.record.settings, schedule=run.settings)
        for run in collect([tmp_path])[0]
    ]
    mine = [run for run in runs if run.schedule.get("regrow_schedule") == "constant"]
    others = [run for run in runs if run not in mine]
    name, arms = _arms(mine, others)
    assert name == "criticality, regrow_schedule=constant"
    assert set(arms) == {"criticality, regrow_schedule=decay", "magnitude"}
    assert all(sorted(run.seed for run in group) == [0, 1] for group in arms.values())
    assert _arms(mine, [run for run in others if run.recipe.method == "magnitude"])[0] == "criticality"


def test_runs_of_one_method_and_seed_have_names_of_their_own_on_the_page():
    against = [SimpleNamespace(method=method, seed=0, run=f"r{n}") for n, method in enumerate("aab")]
    names = [name for name, _ in _parts(SimpleNamespace(seeds=None, against=against))]
    assert names == ["this run", "a seed 0, r0", "a seed 0, r1", "b seed 0"]
