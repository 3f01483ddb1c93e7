"""The script that trains the networks of `sp.pretrained`: it repeats itself, and goes on where it stopped."""

import dataclasses
import importlib
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "study" / "pretrained"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    recipes, train = importlib.import_module("recipes"), importlib.import_module("train")
    short = dataclasses.replace(recipes.RECIPES["digits"], progress=(0.0, 0.5, 1.0), batch=128)
    stages = (recipes.Stage(0.4, 4, 1, smooth=True), recipes.Stage(0.7, 6, 2), recipes.Stage(1.0, 8, 4))
    # 12 steps an epoch: progress for steps 0, 5 and 10 of the first one, then the end.
    staged = dataclasses.replace(short, held=5, progress=(0.0, 0.5, 0.8, 1.0), stages=stages)
    monkeypatch.setitem(recipes.RECIPES, "digits", short)
    monkeypatch.setitem(recipes.RECIPES, "staged", dataclasses.replace(staged, model="resnet19-slim"))
    return train


def test_an_interrupted_training_ends_with_the_same_weights(script, tmp_path):
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    whole = script.Training("digits", 3, None, tmp_path / "whole", None)
    whole.run()
    first = script.Training("digits", 3, None, tmp_path / "cut", None)
    first._epoch()
    again = script.Training("digits", 3, None, tmp_path / "cut", None)
    again.run()
    assert again.state.epoch == whole.state.epoch == 2
    one, two = (dict(t.model.named_parameters()) for t in (whole, again))
    assert all(torch.equal(one[key], two[key]) for key in one)
    for mine, other in zip(whole.model.buffers(), again.model.buffers(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)
    assert (tmp_path / "cut" / "digits-3.safetensors").is_file()


def test_stages_follow_the_recorded_progress(script, tmp_path, monkeypatch):
    training = script.Training("staged", 0, None, tmp_path, None)
    seen = []
    step = training._step

    def spy(x, target):
        smooth = not training.model.body[0].lif1.surrogate_function.spiking
        seen.append((x.shape[-1], training.model.T, smooth, training.fused, training.optimizer.param_groups[0]["lr"]))
        return step(x, target)

    monkeypatch.setattr(training, "_step", spy)
    card = training.run()
    rate = script.learning_rate
    assert seen[0] == (4, 1, True, False, rate(0.1, 0.0))
    assert seen[5] == (6, 2, False, True, rate(0.1, 0.5))
    assert seen[11] == (8, 4, False, True, rate(0.1, 0.8))
    assert len(seen) == 12
    assert training.state.progress == [0.0, 0.5, 0.8, 1.0]
    assert (card.T, card.counts["test"]) == (4, 355)
    assert training.model.training
    assert training.model.body[0].lif1.surrogate_function.alpha == 4.0


def test_learning_rate_worked_by_hand(script):
    # half of the rise; the top; half of the fall, where cos(pi / 2) = 0
    assert script.learning_rate(0.1, 0.04) == pytest.approx(0.05001)
    assert script.learning_rate(0.1, 0.08) == pytest.approx(0.10001)
    assert script.learning_rate(0.1, 0.54) == pytest.approx(0.05001)
    assert script.learning_rate(0.1, 1.0) == pytest.approx(1e-5)
