"""Names of allocations, and what a Pruner keeps per layer under each."""

import pytest
import torch

import spikeprune as sp
from nets import conv_net
from spikeprune.core import allocate
from spikeprune.core.errors import InvalidValue, UnknownName


def test_names_are_sorted_and_unknown_ones_refused():
    assert allocate.names() == ["erk", "global", "lamp", "uniform"]
    with pytest.raises(UnknownName, match="did you mean 'uniform'"):
        allocate.check("unifrom")


@pytest.mark.parametrize("name", ["global", "uniform", "erk", "lamp"])
def test_one_shot_meets_the_target_and_the_quota(name):
    model = conv_net()
    pruner = sp.Pruner(model, "magnitude", sp.OneShot(0.9), allocate=name)
    quota = pruner.quota(0.9)
    pruner.step()
    assert {n: int(m.sum()) for n, m in pruner.masks.items()} == quota
    assert pruner.alive == 76  # floor(768 * .1) = 76.8


def test_quotas_over_many_events_never_miss_although_rounding_wanders():
    # Largest remainders can give a layer one more at a smaller total (the Alabama paradox); dead weights stay dead.
    for name in ("uniform", "erk", "lamp"):
        model = conv_net()
        pruner = sp.Pruner(model, "magnitude", sp.Linear(to=0.97, end=150, every=1), allocate=name)
        for event in pruner.preview():
            before = pruner.masks
            pruner.step()
            assert pruner.alive == event.kept
            assert all((pruner.masks[n] <= before[n]).all() for n in before)


def test_a_layer_never_falls_below_its_floor():
    model = conv_net()
    with torch.no_grad():
        model[0].weight.mul_(1e-6)  # magnitude alone would empty the first layer
    assert not sp.Pruner(model, "magnitude", sp.OneShot(0.9), floor=0).quota(0.9)["0.weight"]
    for floor, least in ((1, 1), (5, 5), (0.05, 3)):
        assert sp.Pruner(model, "magnitude", sp.OneShot(0.9), floor=floor).quota(0.9)["0.weight"] == least


def test_floors_larger_than_the_target_give_way():
    for name in ("global", "uniform", "erk", "lamp"):
        pruner = sp.Pruner(conv_net(), "magnitude", sp.OneShot(0.98), allocate=name, floor=10)
        assert pruner.quota(0.98) == {"0.weight": 5, "4.weight": 5, "8.weight": 5}  # floor(15.36) = 15
    with pytest.raises(InvalidValue, match="lower the sparsity or the floor"):
        allocate.round_to({"a": 1.0}, 9, {"a": 0}, {"a": 5})


def test_too_much_is_taken_from_those_that_have_most_above_what_they_wanted():
    # The floor of "a" leaves 7 for the others, and 4.9 and 4.1 are cut to 4 and 4: "c" is nearer to the 4 that it has.
    wanted, floor, size = {"a": 0.2, "b": 4.9, "c": 4.1}, {"a": 3, "b": 0, "c": 0}, dict.fromkeys("abc", 9)
    assert allocate.round_to(wanted, 10, floor, size) == {"a": 3, "b": 4, "c": 3}


def test_what_is_missing_goes_to_those_that_have_most_below_what_they_wanted():
    wanted = {"a": 1.2, "b": 2.9, "c": 0.9}
    assert allocate.round_to(wanted, 5, dict.fromkeys("abc", 0), dict.fromkeys("abc", 9)) == {"a": 1, "b": 3, "c": 1}
    # "a" wanted most beyond what it has, but it is full.
    wanted, size = {"a": 9.0, "b": 2.9, "c": 1.2}, {"a": 3, "b": 9, "c": 9}
    assert allocate.round_to(wanted, 7, dict.fromkeys("abc", 0), size) == {"a": 3, "b": 3, "c": 1}
