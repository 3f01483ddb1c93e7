"""The plan of mask updates and the choices of a Pruner: what goes together and what does not."""

import pytest

import spikeprune as sp
from spikeprune.core.errors import InvalidValue
from spikeprune.core.schedule import MaskUpdate
from spikeprune.prune.choices import Choices
from spikeprune.prune.plan import UpdatePlan


def test_a_pattern_allows_the_sparsity_of_its_zeros():
    for pattern, most in (((2, 4), 0.5), ((1, 4), 0.75)):
        assert UpdatePlan.of(sp.Magnitude(), sp.OneShot(most), pattern).highest == most
        with pytest.raises(InvalidValue, match=rf"'{pattern[0]}:4' allows sparsity {most} at most, the schedule asks"):
            UpdatePlan.of(sp.Magnitude(), sp.OneShot(most + 0.01), pattern)
    assert UpdatePlan.of(sp.Magnitude(), sp.OneShot(0.99)).highest == 0.99


def test_which_mask_update_comes_and_which_has_passed():
    plan = UpdatePlan.of(sp.Magnitude(), sp.Linear(to=0.8, initial=0.2, begin=1, end=7, every=3))  # in steps 4 and 7
    first, second = plan.updates
    assert [(u.number, u.step, u.target) for u in plan.updates] == [(1, 4, 0.5), (2, 7, 0.8)]
    before = MaskUpdate(0, 0, 0.2, None)
    assert [plan.passed(step) for step in (1, 4, 5, 7, 8)] == [before, before, first, first, second]
    assert [plan.coming(step) for step in (1, 4, 5, 7, 8)] == [first, first, second, second, None]
    assert [plan.at(step) for step in (3, 4, 5, 7, 8)] == [None, first, None, second, None]
    assert (plan.last_step, plan.highest) == (7, 0.8)


def test_the_least_of_a_layer_is_one_weight_unless_something_else_is_asked_for():
    assert [Choices(floor=floor).floor for floor in (None, 0, 5, 0.5)] == [1, 0, 5, 0.5]
    assert [Choices(pattern="channel", floor=floor).floor for floor in (None, 0, 5)] == [None, 0, 5]


@pytest.mark.parametrize("other", [{"allocate": "uniform"}, {"budget": "macs"}, {"pattern": "2:4"}], ids=str)
def test_the_authors_rule_ranks_single_weights_or_channels_over_all_layers(other):
    authors = sp.Criticality(rule="authors")
    for choices in (Choices(), Choices(pattern="channel"), Choices(start="random")):
        choices.check(authors)
    with pytest.raises(InvalidValue, match="rule='authors' is their global ranking"):
        Choices(**other).check(authors)
    Choices(**other).check(sp.Criticality())
