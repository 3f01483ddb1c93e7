"""Selection keeps exactly what it was asked for, whatever the scores look like."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spikeprune.core import select
from spikeprune.core.errors import InvalidValue
from spikeprune.core.select import draw, keep_cost, keep_quota, keep_top, kth_largest


@st.composite
def tied_scores(draw):
    """Up to four tensors whose scores come from few values, so that many tie; -inf and inf among them."""
    sizes = draw(st.lists(st.integers(1, 12), min_size=1, max_size=4))
    values = st.sampled_from([0.0, -1.0, 1.0, 2.5, float("inf"), float("-inf")])
    return {
        f"layer{i}": torch.tensor(draw(st.lists(values, min_size=size, max_size=size))) for i, size in enumerate(sizes)
    }


def in_index_order(scores, k, among=None):
    """The rule, naively: sort by score, then by place; take k."""
    flat = [(-s.item(), i) for i, s in enumerate(torch.cat([s.reshape(-1) for s in scores.values()]))]
    allowed = [True] * len(flat) if among is None else torch.cat([a.reshape(-1) for a in among.values()]).tolist()
    chosen = {i for _, i in sorted(x for x in flat if allowed[x[1]])[:k]}
    picked, start = {}, 0
    for name, score in scores.items():
        picked[name] = torch.tensor([start + i in chosen for i in range(score.numel())]).view(score.shape)
        start += score.numel()
    return picked


@settings(max_examples=60, deadline=None)
@given(tied_scores(), st.data())
def test_keep_top_is_exact_and_breaks_ties_by_index(scores, data):
    among = {
        n: torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(s), max_size=len(s)))) for n, s in scores.items()
    }
    for candidates in (None, among):
        available = sum(len(s) if candidates is None else int(among[n].sum()) for n, s in scores.items())
        k = data.draw(st.integers(0, available))
        masks = keep_top(scores, k, candidates)
        expected = in_index_order(scores, k, candidates)
        assert all(torch.equal(masks[n], expected[n]) for n in scores)
        assert sum(int(m.sum()) for m in masks.values()) == k


def test_all_scores_tie():
    masks = keep_top({"a": torch.ones(2, 3), "b": torch.ones(4)}, 8)
    assert masks["a"].all()
    assert masks["b"].tolist() == [True, True, False, False]


def test_k_out_of_range_and_nan():
    for k in (-1, 4):
        with pytest.raises(InvalidValue, match="candidates"):
            keep_top({"a": torch.ones(3)}, k)
    with pytest.raises(InvalidValue, match="nan"):
        keep_top({"a": torch.tensor([1.0, float("nan")])}, 1)


def orders(total):
    random = torch.randn(total)
    return {
        "random": random,
        "sorted": random.sort().values,
        # What a strided sample sees is one residue class: here it holds the extremes only.
        "periodic": torch.arange(total).remainder(4).float() * 1e6 + random,
        "all but a few tie": torch.where(torch.arange(total) % 1000 == 0, random, torch.zeros(())),
        "one value": torch.full((total,), 0.5),
    }


@pytest.mark.parametrize("order", ["random", "sorted", "periodic", "all but a few tie", "one value"])
def test_kth_largest_of_long_lists_equals_sorting(order):
    total = (1 << 18) + 12_345
    values = orders(total)[order]
    parts = list(values.split([100, 1 << 17, 7, total - (1 << 17) - 107]))
    ranked = values.sort(descending=True).values
    for k in (1, 2, total // 20, total // 2, total - 1, total):
        assert kth_largest(parts, k) == ranked[k - 1]


def test_a_sample_that_misleads_is_noticed():
    # Every place the sample looks at holds 0, everything else 1: the bracket [0, 0] misses the median.
    total = (1 << 18) + 4
    stride = total // select._SAMPLE
    values = torch.ones(total)
    values[::stride] = 0
    assert kth_largest([values], total // 2) == 1
    assert kth_largest([values], total) == 0


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_keep_cost_stays_within_budget_and_leaves_no_room_for_the_next(data):
    sizes = data.draw(st.lists(st.integers(1, 8), min_size=1, max_size=3))
    number = st.sampled_from([0.0, 0.5, 1.0, 3.0])
    scores = {str(i): torch.tensor(data.draw(st.lists(number, min_size=n, max_size=n))) for i, n in enumerate(sizes)}
    cost = {n: data.draw(st.sampled_from([1.0, 2.0, 7.5])) for n in scores}
    budget = data.draw(st.floats(0, 80))
    masks = keep_cost(scores, cost, budget)
    spent = sum(cost[n] * int(m.sum()) for n, m in masks.items())
    assert spent <= budget * (1 + 1e-9)
    dead = [(-s.item(), i, n) for i, n in enumerate(scores) for s, m in zip(scores[n], masks[n], strict=True) if not m]
    if dead:  # the best of those left out would go over the budget
        assert spent + cost[min(dead)[2]] > budget
    kept = [s.item() for n in scores for s, m in zip(scores[n], masks[n], strict=True) if m]
    assert not kept or not dead or min(kept) >= -min(dead)[0]


def test_keep_cost_takes_only_candidates_and_broadcast_costs():
    scores = {"a": torch.tensor([[3.0, 2.0], [1.0, 5.0]])}
    among = {"a": torch.tensor([[True, True], [True, False]])}
    masks = keep_cost(scores, {"a": torch.tensor([[1.0, 4.0]])}, 5.0, among)
    assert masks["a"].tolist() == [[True, True], [False, False]]  # 1 + 4; the fourth is no candidate


@settings(max_examples=30, deadline=None)
@given(tied_scores(), st.data())
def test_quota_per_layer_is_exact(scores, data):
    quota = {n: data.draw(st.integers(0, len(s))) for n, s in scores.items()}
    masks = keep_quota(scores, quota)
    assert {n: int(m.sum()) for n, m in masks.items()} == quota


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.permutations(range(6)))
def test_permuting_channels_permutes_the_selection(seed, order):
    scores = torch.rand(6, 4, generator=torch.Generator().manual_seed(seed))  # no ties
    order = list(order)
    assert torch.equal(keep_top({"a": scores[order]}, 9)["a"], keep_top({"a": scores}, 9)["a"][order])


def test_draw_is_seeded_and_proportional():
    scores = {"a": torch.tensor([0.0, 1.0, 3.0, 0.0]).expand(2000, 4)}
    drawn = draw(scores, torch.Generator().manual_seed(7))["a"]
    counts = torch.bincount(drawn.argmax(1), minlength=4)
    assert counts[0] == counts[3] == 0  # a score of 0 is never drawn before a positive one
    assert abs(counts[2] / counts[1] - 3) < 0.5  # 1500 : 500; four standard deviations are about .5
    assert torch.equal(drawn, draw(scores, torch.Generator().manual_seed(7))["a"])
