"""One round as a pure function: counts, overlap, floors, patterns and budgets under random scores and masks."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spikeprune.core.update import Target, prune_and_regrow

SHAPES = {"conv": (4, 4, 3, 3), "late": (6, 4, 1, 1), "classifier": (5, 8)}
TOTAL = 144 + 24 + 40


def case(seed, *, ties=False, alive_share=1.0):
    generator = torch.Generator().manual_seed(seed)
    weights = {n: torch.randn(s, generator=generator) for n, s in SHAPES.items()}
    alive = {n: torch.rand(s, generator=generator) < alive_share for n, s in SHAPES.items()}
    weights = {n: w * alive[n] for n, w in weights.items()}
    scores = {n: w.abs().round(decimals=1) if ties else w.abs() for n, w in weights.items()}
    regrow = {n: torch.rand(SHAPES[n][0], generator=generator) for n in ("conv", "late")}
    regrow = {n: (s.round(decimals=1) if ties else s).view(-1, 1, 1, 1).expand(SHAPES[n]) for n, s in regrow.items()}
    return weights, alive, scores, regrow


def count(masks):
    return sum(int(m.sum()) for m in masks.values())


def check(outcome, alive, keep, candidates="all"):
    assert count(outcome.alive) == keep
    for n in SHAPES:
        assert not (outcome.survivors[n] & outcome.regrown[n]).any()
        assert torch.equal(outcome.alive[n], outcome.survivors[n] | outcome.regrown[n])
        assert not (outcome.survivors[n] & ~alive[n]).any()  # a cut revives nothing
        if candidates == "new":
            assert not (outcome.regrown[n] & ~alive[n]).any()
    assert not outcome.regrown["classifier"].any()


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 10_000),
    st.sampled_from(["global", "uniform", "erk", "lamp"]),
    st.floats(0, 0.9),
    st.floats(0.2, 1.0),
    st.booleans(),
    st.sampled_from(["all", "new"]),
)
def test_the_target_is_met_to_the_weight(seed, allocate, share, alive_share, ties, candidates):
    weights, alive, scores, regrow = case(seed, ties=ties, alive_share=alive_share)
    keep = int(0.8 * count(alive))
    target = Target(keep, allocate, dict.fromkeys(SHAPES, 1))
    outcome = prune_and_regrow(scores, regrow, alive, weights, target, share=share, candidates=candidates)
    check(outcome, alive, keep, candidates)
    assert all(outcome.alive[n].any() for n in SHAPES if alive[n].any())  # the floor


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["global", "uniform", "erk", "lamp"]), st.floats(0, 0.5))
def test_regrowth_fills_up_where_fewer_are_alive_than_wanted(seed, allocate, share):
    weights, alive, scores, regrow = case(seed, alive_share=0.5)
    keep = count(alive) + 10
    target = Target(keep, allocate, dict.fromkeys(SHAPES, 0))
    outcome = prune_and_regrow(scores, regrow, alive, weights, target, share=share + 0.01)
    check(outcome, alive, keep)


def test_share_is_of_the_weights_kept_in_the_regrowing_layers():
    weights, alive, scores, regrow = case(3)
    outcome = prune_and_regrow(
        scores, regrow, alive, weights, Target(100, "global", dict.fromkeys(SHAPES, 0)), share=0.2
    )
    base = count({n: outcome.reference[n] for n in regrow})
    assert count(outcome.regrown) == int(0.2 * base)
    assert torch.equal(outcome.alive["classifier"], outcome.reference["classifier"])


def test_regrown_are_the_best_dead_ones():
    weights, alive, scores, regrow = case(5)
    outcome = prune_and_regrow(
        scores, regrow, alive, weights, Target(100, "global", dict.fromkeys(SHAPES, 0)), share=0.3
    )
    worst_in = min(float(regrow[n][outcome.regrown[n]].min()) for n in regrow if outcome.regrown[n].any())
    best_out = max(float(regrow[n][~outcome.alive[n]].max()) for n in regrow)
    assert worst_in >= best_out


def test_protected_weights_are_not_cut():
    weights, alive, scores, regrow = case(7)
    weakest = {n: s <= s.flatten().kthvalue(3).values for n, s in scores.items()}
    target = Target(60, "global", dict.fromkeys(SHAPES, 0))
    outcome = prune_and_regrow(scores, regrow, alive, weights, target, share=0.2, protected=weakest)
    assert all(outcome.survivors[n][weakest[n]].all() for n in SHAPES)
    check(outcome, alive, 60)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10_000),
    st.sampled_from(["global", "uniform"]),
    st.sampled_from([(2, 4), (1, 4), (1, 2)]),
    st.floats(0.0, 0.6),
    st.booleans(),
)
def test_nm_holds_exactly_at_the_final_sparsity_with_regrowth(seed, allocate, pattern, share, grace):
    n, m = pattern
    weights, alive, _, regrow = case(seed)
    alive = {name: torch.ones_like(mask) for name, mask in alive.items()}
    generator = torch.Generator().manual_seed(seed)
    protected = None
    for density in (1.0, 0.9, 0.8, 0.65, 0.5):
        keep = max(int(TOTAL * density), TOTAL * n // m) if density > n / m else TOTAL * n // m
        target = Target(keep, allocate, dict.fromkeys(SHAPES, 1), pattern=pattern)
        scores = {name: torch.rand(s, generator=generator) for name, s in SHAPES.items()}
        outcome = prune_and_regrow(
            scores, regrow, alive, weights, target, share=share, protected=protected if grace else None
        )
        check(outcome, alive, keep)
        alive, protected = outcome.alive, outcome.regrown
    final = Target(TOTAL * n // m, allocate, dict.fromkeys(SHAPES, 1), pattern=pattern)
    outcome = prune_and_regrow(scores, regrow, alive, weights, final, share=share)
    for mask in outcome.alive.values():
        groups = mask.movedim(1, -1).reshape(-1, m)
        assert (groups.sum(1) == n).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.05, 0.95), st.floats(0, 0.5))
def test_a_budget_of_cost_is_kept_and_used(seed, density, share):
    weights, alive, scores, regrow = case(seed)
    cost = {"conv": 16.0, "late": 4.0, "classifier": 1.0}
    whole = sum(cost[n] * w.numel() for n, w in weights.items())
    target = Target(0, "global", dict.fromkeys(SHAPES, 1), cost=cost, budget=density * whole)
    outcome = prune_and_regrow(scores, regrow, alive, weights, target, share=share)
    spent = sum(cost[n] * int(m.sum()) for n, m in outcome.alive.items())
    assert spent <= target.budget + 1e-6
    assert spent > target.budget - 3 * 16  # each of the three passes may leave less than one weight's cost
    assert all(m.any() for m in outcome.reference.values())


def test_under_a_budget_of_cost_weights_rank_by_their_square_per_cost():
    # 2.2^2 / 4 = 1.21 is more than 1^2 / 1; 1.9^2 / 4 = 0.9025 is less. Scores below 0 come last.
    alive = {"dear": torch.ones(1, 1).bool(), "cheap": torch.ones(1, 2).bool()}

    def kept(dear, cheap, budget):
        scores = {"dear": torch.tensor([[dear]]), "cheap": torch.tensor([cheap])}
        target = Target(0, "global", {"dear": 0, "cheap": 0}, cost={"dear": 4.0, "cheap": 1.0}, budget=budget)
        return {
            n: m.flatten().tolist()
            for n, m in prune_and_regrow(scores, {}, alive, scores, target, share=0.0).alive.items()
        }

    assert kept(2.2, [1.0, 0.5], 4.0) == {"dear": [True], "cheap": [False, False]}
    assert kept(1.9, [1.0, 0.5], 4.0) == {"dear": [False], "cheap": [True, False]}
    assert kept(0.1, [-3.0, -0.1], 5.0) == {"dear": [True], "cheap": [False, True]}
    assert kept(-0.1, [-3.0, 0.0], 5.0) == {"dear": [True], "cheap": [False, True]}
