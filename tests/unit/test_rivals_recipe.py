"""`--method NAME` does what that method means, in any recipe, unless the user says otherwise."""

import pytest

from spikeprune.core.schedule import Constant, Cubic, OneShot
from spikeprune.lab.recipe import load, make_method, settings_hash
from spikeprune.lab.recipe.timetable import lay_out
from spikeprune.lab.train.preview import preview


def test_a_method_brings_its_own_start_schedule_and_share():
    recipe = load("digits", ["--method", "rigl"])
    assert (recipe.start, recipe.allocate, recipe.regrow, recipe.prune.schedule) == ("random", "erk", 0.3, "constant")
    assert isinstance(lay_out(recipe, 1298).schedule, Constant)
    assert make_method(recipe).regrow == 0.3
    assert make_method(load("digits", ["--method", "set"])).regrow == Constant(0.3)


def test_the_command_line_wins_over_a_method():
    recipe = load("digits", ["--method", "rigl", "--start", "dense", "--regrow", "0.1", "--prune.schedule", "cubic"])
    assert (recipe.start, recipe.allocate, recipe.regrow) == ("dense", "erk", 0.1)
    assert lay_out(recipe, 1298).schedule.initial == 0


def test_a_recipe_written_for_the_method_wins_over_it(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("method: rigl\nregrow: 0.1\nprune:\n  schedule: cubic\n")
    recipe = load(str(path))
    assert (recipe.start, recipe.regrow, recipe.prune.schedule) == ("random", 0.1, "cubic")
    recipe = load(str(path), ["--method", "set"])
    assert (recipe.start, recipe.regrow, recipe.prune.schedule) == ("random", 0.3, "constant")


def test_flagship_recipes_are_untouched():
    recipe = load("fashion")
    assert (recipe.start, recipe.allocate, recipe.regrow, recipe.prune.initial) == ("dense", "global", 0.2, 0)


def test_a_rising_schedule_starts_at_the_initial_sparsity():
    schedule = lay_out(load("digits", ["--method", "ndsnn", "--sparsity", "0.9"]), 1298).schedule
    assert isinstance(schedule, Cubic)
    assert schedule.initial == 0.7
    # s_1 of 5 = 0.9 - 0.2 * 0.8^3 = 0.7976
    assert schedule.value(1, 5) == pytest.approx(0.7976)
    assert lay_out(load("digits", ["--method", "ndsnn", "--sparsity", "0.6"]), 1298).schedule.initial == 0.6


@pytest.mark.parametrize("epochs", ["1", "40"])
def test_snip_prunes_in_the_first_step_however_long_the_run(epochs):
    schedule = lay_out(load("digits", ["--method", "snip", "--epochs", epochs]), 1298).schedule
    assert isinstance(schedule, OneShot)
    assert schedule.steps() == (1,)


def test_previews_meet_the_sparsity():
    for method in ("set", "rigl", "snfs", "granet", "ndsnn", "snip", "random-prune"):
        lines = preview(load("digits", ["--method", method, "--sparsity", "0.9"]))
        total = int(next(line for line in lines if line.startswith("prunable")).split()[-1])
        last = [line for line in lines if line.startswith("event ")][-1]
        assert int(last.split()[-1]) == int(total * 0.1 + 1e-6)


def test_the_hash_knows_what_the_method_set():
    assert settings_hash(load("digits", ["--method", "rigl"])) != settings_hash(
        load("digits", ["--method", "rigl", "--start", "dense"])
    )
