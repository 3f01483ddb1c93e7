"""What selection refuses, and the ends of what it allows."""

import pytest
import torch

from spikeprune.core.errors import InvalidValue
from spikeprune.core.select import draw, keep_quota, keep_top, keep_under_cost


def test_nothing_and_everything():
    scores = {"a": torch.rand(3, 2), "b": torch.rand(4)}
    assert not any(m.any() for m in keep_top(scores, 0).values())
    assert all(m.all() for m in keep_top(scores, 10).values())


def test_candidates_with_the_lowest_score_there_is():
    # -inf is a score too: it must not be confused with what stands outside the candidates.
    scores = {"a": torch.tensor([float("-inf")] * 4)}
    among = {"a": torch.tensor([False, True, False, True])}
    assert keep_top(scores, 1, among)["a"].tolist() == [False, True, False, False]


def test_a_quota_beyond_the_layer_is_refused():
    with pytest.raises(InvalidValue, match="cannot keep 4 of 3"):
        keep_quota({"a": torch.rand(3)}, {"a": 4})


def test_infinite_scores_of_both_signs_are_ranked():
    kept = keep_top({"a": torch.tensor([-torch.inf, 1.0, torch.inf])}, 2)
    assert kept["a"].tolist() == [False, True, True]


def test_nan_is_refused_with_what_to_look_at():
    with pytest.raises(InvalidValue, match="check the loss"):
        keep_top({"a": torch.rand(3), "b": torch.tensor([float("nan")])}, 2)


def test_half_precision_scores_are_ranked_exactly():
    scores = {"a": torch.arange(100, dtype=torch.bfloat16).flip(0)}
    assert keep_top(scores, 30)["a"].nonzero().flatten().tolist() == list(range(30))


def prices(**each):
    """The cost of channels where each group has its own price for one."""
    return lambda masks: sum(each[name] * float(mask.sum()) for name, mask in masks.items())


def test_a_floor_that_costs_more_than_the_budget_is_refused():
    scores, floor, cost = {"a": torch.rand(4), "b": torch.rand(3)}, {"a": 1, "b": 2}, prices(a=10.0, b=20.0)
    kept = keep_under_cost(scores, cost, 50.0, floor)
    assert {name: int(mask.sum()) for name, mask in kept.items()} == floor
    for allowed in (49.5, 1.0):
        with pytest.raises(InvalidValue, match=r"cannot be met: the fewest channels .* already cost 50"):
            keep_under_cost(scores, cost, allowed, floor)


def test_a_budget_of_nothing_keeps_nothing():
    kept = keep_under_cost({"a": torch.rand(3), "b": torch.rand(2)}, prices(a=1.0, b=2.0), 0.0, {})
    assert not any(bool(mask.any()) for mask in kept.values())


@pytest.mark.parametrize(("dear", "found"), [(63, True), (64, False)])
def test_a_cheap_channel_is_found_behind_63_that_do_not_fit(dear, found):
    scores = {"dear": torch.ones(dear), "cheap": torch.zeros(1)}
    kept = keep_under_cost(scores, prices(dear=10.0, cheap=1.0), 5.0, {})
    assert not kept["dear"].any()
    assert kept["cheap"].tolist() == [found]


def test_one_of_ten_is_drawn_in_proportion_to_its_score():
    # 9 of 18 in all for the first: every second draw; a standard deviation of 4,000 draws is 0.008.
    scores = {"a": torch.tensor([9.0, *[1.0] * 9]).expand(4000, 10)}
    drawn = draw(scores, torch.Generator().manual_seed(3))["a"].argmax(1)
    assert float((drawn == 0).double().mean()) == pytest.approx(0.5, abs=0.03)
