"""Quotas: whole numbers that sum to the target, within what each layer must and can keep."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spikeprune.core.allocate import floors, kept, quotas, round_to
from spikeprune.core.errors import InvalidValue, UnknownName


@st.composite
def layers(draw):
    shapes = draw(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=5))
    seed = draw(st.integers(0, 999))
    generator = torch.Generator().manual_seed(seed)
    zeros = draw(st.booleans())  # layers of zeros tie in LAMP
    return {f"w{i}": torch.randn(s, generator=generator) * (not zeros) for i, s in enumerate(shapes)}


@settings(max_examples=80, deadline=None)
@given(layers(), st.floats(0, 0.999), st.sampled_from(["uniform", "erk", "lamp"]), st.data())
def test_quotas_sum_exactly_within_floor_and_room(weights, sparsity, name, data):
    room = {n: data.draw(st.integers(0, w.numel())) for n, w in weights.items()}
    floor = {n: data.draw(st.integers(0, min(2, room[n]))) for n in weights}
    total = sum(w.numel() for w in weights.values())
    keep = min(max(kept(total, sparsity), sum(floor.values())), sum(room.values()))
    quota = quotas(name, weights, keep, floor, room)
    assert sum(quota.values()) == keep
    assert all(floor[n] <= quota[n] <= room[n] for n in weights)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 50), min_size=1, max_size=6))
def test_rounding_stays_within_one_of_what_was_wanted(wanted):
    names = {str(i): w for i, w in enumerate(wanted)}
    keep = round(sum(wanted))
    if abs(sum(wanted) - keep) > 0.49:
        return
    result = round_to(names, keep, dict.fromkeys(names, 0), dict.fromkeys(names, 60))
    assert sum(result.values()) == keep
    assert all(abs(result[n] - w) <= 1 + 1e-6 for n, w in names.items())


def test_uniform_and_erk_densities():
    weights = {"a": torch.zeros(10, 10), "b": torch.zeros(20, 20)}
    assert quotas("uniform", weights, 50, dict.fromkeys(weights, 0)) == {"a": 10, "b": 40}
    assert quotas("erk", weights, 60, dict.fromkeys(weights, 0)) == {"a": 20, "b": 40}  # 20 : 40


def test_an_allocation_without_quotas_is_refused():
    with pytest.raises(UnknownName, match="no allocation with quotas named 'global'; known: erk, lamp, uniform"):
        quotas("global", {"a": torch.zeros(4)}, 2, {"a": 0})


def test_floor_is_a_count_or_a_share():
    weights = {"a": torch.zeros(10), "b": torch.zeros(400)}
    assert floors(weights, 0) == {"a": 0, "b": 0}
    assert floors(weights, 1) == {"a": 1, "b": 1}
    assert floors(weights, 25) == {"a": 10, "b": 25}
    assert floors(weights, 0.1) == {"a": 1, "b": 40}
    with pytest.raises(InvalidValue, match="floor"):
        floors(weights, -1)


def test_what_cannot_be_spread_is_refused():
    with pytest.raises(InvalidValue, match="lower the sparsity or the floor"):
        round_to({"a": 3.0}, 3, {"a": 5}, {"a": 9})
