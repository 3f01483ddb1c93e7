"""Early-Time: fewer time steps in the search, chosen as published, counted in the cost."""

import json
import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spikeprune.lab.recipe import load
from spikeprune.lab.train.early_time import fewer_steps
from spikeprune.lab.train.network import TimedNetwork
from spikeprune.lab.train.preview import preview
from spikeprune.lab.train.run import run
from spikeprune.methods.eb_et import EbEt
from spikeprune.methods.imp_et import ImpEt

ADAPTER: Any = SimpleNamespace(
    reset=lambda model: None, states=lambda model: None, restore=lambda model, states: None
)  # fmt: skip


class Table(nn.Module):
    """Logits over time from a table, for every image alike."""

    def __init__(self, *logits: list[float]) -> None:
        super().__init__()
        self.T = len(logits)
        self.register_buffer("logits", torch.tensor(logits))

    def forward(self, x: Tensor) -> Tensor:
        return self.logits[: self.T, None].expand(-1, len(x), -1)


def test_the_first_number_of_steps_whose_answers_are_near():
    # Mean of the first logit over 5, 2, 3, 4 steps: 2, 5, 10/3, 2.5; the second is 0. The share of the first answer is
    # sigmoid: .8808, .9933, .9656, .9241. KL(p || q) = p ln(p/q) + (1-p) ln((1-p)/(1-q)): .2374, .0671, .0116.
    # .0671 is below .6 * .2374 = .1424, so 3 steps do.
    model = Table([8.0, 0.0], [2.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0])
    network = TimedNetwork(model, ADAPTER, "image", 5, "mean")
    assert fewer_steps(network, torch.zeros(4, 1), False) == 3
    assert model.T == 5
    # .0671 / .2374 = .2824 and .0116 / .2374 = .0487: with a threshold in between 4 steps do, below both none.
    assert fewer_steps(network, torch.zeros(4, 1), False, threshold=0.28) == 4
    assert fewer_steps(network, torch.zeros(4, 1), False, threshold=0.01) == 5


def test_a_model_whose_time_cannot_be_changed_is_refused():
    model = Table([1.0, 0.0], [1.0, 0.0], [1.0, 0.0])
    del model.T
    with pytest.raises(ValueError, match="has no attribute T"):
        TimedNetwork(model, ADAPTER, "image", 3, "mean").at(2)


def test_fewer_steps_are_a_view_that_leaves_the_model_alone():
    model = Table([8.0, 0.0], [2.0, 0.0], [0.0, 0.0])
    network = TimedNetwork(model, ADAPTER, "image", 3, "mean")
    few = network.at(2)
    assert (few(torch.zeros(4, 1)).shape[0], model.T) == (2, 3)
    assert network(torch.zeros(4, 1)).shape[0] == 3
    with few.one_call() as inside:
        assert inside.T == 2
    assert model.T == 3
    with pytest.raises(TypeError):
        few(5)  # type: ignore[arg-type]
    assert model.T == 3


def test_recordings_are_cut_to_the_first_steps():
    seen: list[int] = []
    model = nn.Identity()
    model.forward = lambda x: (seen.append(len(x)), x.flatten(2))[1]
    network = TimedNetwork(model, ADAPTER, "sequence", 4, "mean").at(2)
    network(torch.zeros(4, 3, 1, 2, 2), recorded=True)
    assert seen == [2]


@pytest.mark.parametrize("make", [ImpEt, EbEt])
@pytest.mark.parametrize("wrong", [0, "two", 1.5])
def test_bad_time_steps_are_refused(make, wrong):
    with pytest.raises(ValueError, match="search_T must be None"):
        make(search_T=wrong)


def test_the_cost_of_a_search_counts_its_time_steps(tmp_path):
    arguments = ["--sparsity", "0.5", "--T", "2", "--epochs", "6", "--batch", "16", "--data.limit", "40"]
    arguments += ["--data.test_limit", "32"]
    arguments += ["--model", "mlp", "--baseline", "false", "--out", str(tmp_path), "--precision", "fp32"]

    def record(*more: str) -> dict[str, Any]:
        recipe = load("digits", [*arguments, *more])
        return json.loads(run(recipe).record.read_text())

    whole = record("--method", "imp")
    early = record("--method", "imp-et", "--search_T", "1")
    assert whole["sparsity"] == early["sparsity"] == pytest.approx(0.5, abs=1e-4)
    # 3 prunings of 1/4 come to .42 and .56, so ceil(2.41 - .1) = 3 rounds before the last training.
    assert len(early["rounds"]) == 3
    assert early["cost"]["search_epochs"] == whole["cost"]["search_epochs"]
    searched = early["cost"]["search_epochs"] / early["cost"]["epochs"]
    images = 36  # of 40, a tenth is held out
    steps = early["rounds"][-1]["step"]
    samples = sum([16, 16, 4][step % 3] for step in range(steps))
    assert 0.5 < searched < 0.9
    share = 1 - samples / (6 * images) / 2  # half the time steps in the search
    assert early["cost"]["train_macs"] == pytest.approx(share * whole["cost"]["train_macs"])


def test_early_time_without_a_choice_says_so(tmp_path, caplog):
    words = ["--sparsity", "0.5", "--epochs", "4", "--batch", "16", "--data.limit", "40", "--data.test_limit", "32"]
    words += ["--model", "mlp", "--baseline", "false", "--out", str(tmp_path), "--precision", "fp32"]
    for method, T, search, told in (("imp-et", 2, (), True), ("imp-et", 2, ("--search_T", "1"), False)):
        recipe = load("digits", [*words, "--method", method, "--T", str(T), *search])
        assert any("set --search_T 1 or a larger --T" in line for line in preview(recipe)) == told
        caplog.clear()
        with caplog.at_level(logging.WARNING, "spikeprune"):
            run(recipe)
        assert ("Early-Time leaves the search at all 2 time steps" in caplog.text) == told
