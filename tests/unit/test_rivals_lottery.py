"""Lottery tickets: rounds and budgets as published, rewinding, and when an early ticket is drawn."""

import io
import itertools

import pytest
import torch
from torch import Tensor, nn

from spikeprune.core.schedule import Constant, Geometric
from spikeprune.lab.recipe import load
from spikeprune.lab.recipe.timetable import lay_out, learning_rate
from spikeprune.methods.early_bird import EarlyBird
from spikeprune.methods.imp import Imp
from spikeprune.methods.shared import lottery
from spikeprune.prune.pruner import Pruner


def test_imp_has_the_published_rounds_and_epochs():
    # Kim et al.: k prunings by 25 %, F(k) = 300 + 280 (k - 1) epochs to the last mask, T(k) = 300 + 280 k in all.
    for sparsity, k, search, total in ((0.9, 8, 2260, 2540), (0.95, 11, 3100, 3380), (0.98, 14, 3940, 4220)):
        schedule = lottery.ROUNDS.schedule(Imp(), sparsity, total, 1)
        assert len(schedule.steps()) == k
        assert schedule.steps()[0] == 300
        assert schedule.steps()[-1] == search
        assert schedule.begin == 20


def test_every_round_cuts_the_same_share_and_the_last_meets_the_target():
    schedule = Geometric(0.9, begin=0, end=8, every=1)
    densities = [1.0] + [1 - schedule.value(n, 8) for n in range(1, 9)]
    assert [b / a for a, b in itertools.pairwise(densities)] == pytest.approx([0.1 ** (1 / 8)] * 8)
    assert densities[1] == pytest.approx(0.75, abs=2e-4)
    assert schedule.value(8, 8) == 0.9


def test_a_run_too_short_for_its_rounds_is_refused():
    with pytest.raises(ValueError, match="takes 11 rounds and a last training, too many for 12 steps"):
        lottery.ROUNDS.schedule(Imp(), 0.95, 12, 1)


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for number in range(first, last):
        torch.manual_seed(number)
        optimizer.zero_grad()
        model(torch.randn(16, 10)).square().mean().backward()
        optimizer.step()


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {n: v.clone() for n, v in model.state_dict().items()}


def test_imp_cuts_by_magnitude_goes_back_and_forgets_the_optimizer():
    model = small()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    pruner = Pruner(model, Imp(), Geometric(0.75, begin=2, end=8, every=3)).attach(optimizer)  # events at 5 and 8
    train(model, optimizer, 0, 2)
    point = state_of(model)
    assert pruner.round_steps == (0, 5)
    train(model, optimizer, 2, 4)
    before = {n: v.abs() for n, v in model.state_dict().items() if n in pruner.masks}
    assert pruner.sparsity == 0
    train(model, optimizer, 4, 5)
    assert pruner.alive == 56  # 112 weights, half of them: sqrt(1/4)
    for name, value in model.state_dict().items():
        mask = pruner.masks[name] if name in pruner.masks else torch.ones_like(value, dtype=torch.bool)
        assert torch.equal(value, point[name] * mask)
    assert not optimizer.state
    assert pruner.round_steps == (5, 8)
    assert all((before[n][m] > 0).all() for n, m in pruner.masks.items())
    first = {n: m.clone() for n, m in pruner.masks.items()}
    train(model, optimizer, 5, 8)
    assert pruner.alive == 28
    assert all((m <= first[n]).all() for n, m in pruner.masks.items())  # nothing comes back
    assert torch.equal(model[1].running_mean, point["1.running_mean"])
    assert pruner.round_steps == (8, None)
    train(model, optimizer, 8, 10)
    assert not torch.equal(model[1].running_mean, point["1.running_mean"])


@pytest.mark.parametrize("cut", [1, 4, 6])
def test_a_saved_search_goes_on_bit_for_bit(cut):
    def fresh() -> tuple[nn.Module, torch.optim.Optimizer, Pruner]:
        model = small()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        return model, optimizer, Pruner(model, Imp(), Geometric(0.75, begin=2, end=8, every=3)).attach(optimizer)

    model, optimizer, pruner = fresh()
    train(model, optimizer, 0, cut)
    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict(), pruner.state_dict()], file)
    train(model, optimizer, cut, 10)
    file.seek(0)
    again = fresh()
    for thing, state in zip(again, torch.load(file, weights_only=True), strict=True):
        thing.load_state_dict(state)
    train(again[0], again[1], cut, 10)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again[0].parameters(), strict=True))
    assert pruner.round_steps == again[2].round_steps


def test_an_early_bird_is_drawn_when_its_mask_has_settled():
    # The weights hold still from the start (lr 0), so five equal masks are there at step 4: the first mask is that of
    # the initial weights, as in the code of Kim et al., which looks before each epoch.
    model = small()
    start = state_of(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    pruner = Pruner(model, EarlyBird(), Constant(0.5, begin=0, end=8, every=1)).attach(optimizer)
    train(model, optimizer, 0, 3)
    assert (pruner.sparsity, pruner.round_steps) == (0, (0, None))
    train(model, optimizer, 3, 4)
    assert (pruner.alive, pruner.round_steps) == (56, (4, None))
    assert torch.equal(model[1].running_mean, start["1.running_mean"])
    masks = {n: m.clone() for n, m in pruner.masks.items()}
    optimizer.param_groups[0]["lr"] = 0.5
    train(model, optimizer, 4, 10)  # later looks change nothing
    assert all(torch.equal(m, masks[n]) for n, m in pruner.masks.items())
    assert [r["cut"] for r in pruner.rounds] == [False] * 3 + [True] + [False] * 4


def test_a_restless_network_is_cut_at_the_last_look():
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    pruner = Pruner(model, EarlyBird(), Constant(0.5, begin=0, end=8, every=1)).attach(optimizer)
    for number in range(8):
        assert pruner.sparsity == 0
        torch.manual_seed(100 + number)
        for parameter in model.parameters():
            parameter.data.normal_()
        train(model, optimizer, number, number + 1)
    assert pruner.alive == 56


def test_the_distance_is_the_share_of_entries_that_differ():
    a = {"w": torch.tensor([1, 1, 0, 0]).bool(), "v": torch.tensor([1]).bool()}
    b = {"w": torch.tensor([1, 0, 1, 0]).bool(), "v": torch.tensor([1]).bool()}
    assert lottery._distance(a, b) == 2 / 5


def test_the_search_looks_every_epoch_for_at_most_half_the_run():
    assert lottery.SEARCH.schedule(EarlyBird(), 0.9, 300 * 100, 100).steps() == tuple(range(100, 15_001, 100))
    assert len(lottery.SEARCH.schedule(EarlyBird(), 0.9, 200, 100).steps()) == 10  # a short run looks more often


def test_each_round_has_a_learning_rate_course_of_its_own():
    recipe = load("digits", ["--method", "imp", "--epochs", "20", "--sparsity", "0.9", "--data.limit", "1142"])
    laid_out = lay_out(recipe, 1142)
    first, second = laid_out.schedule.steps()[:2]
    assert learning_rate(recipe, 0, laid_out, (0, first)) == recipe.lr
    assert learning_rate(recipe, first, laid_out, (first, second)) == recipe.lr
    middle = (first + second) // 2
    assert learning_rate(recipe, middle, laid_out, (first, second)) == pytest.approx(recipe.lr / 2, rel=0.1)
    assert laid_out.schedule.steps()[-1] < laid_out.steps
    assert learning_rate(recipe, laid_out.steps - 1, laid_out, (laid_out.schedule.steps()[-1], None)) < recipe.lr / 100


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match=r"rate must be in \(0, 1\)"):
        Imp(rate=1.0)
    with pytest.raises(ValueError, match="window of 2 or more masks"):
        EarlyBird(window=1)
