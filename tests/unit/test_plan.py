"""The plan of mask updates and the choices of a Pruner: what goes together and what does not."""

import pytest

import spikeprune as sp
from spikeprune.core.errors import InvalidValue
from spikeprune.prune.choices import Choices
from spikeprune.prune.plan import UpdatePlan


def test_a_pattern_allows_the_sparsity_of_its_zeros():
    for pattern, most in (((2, 4), 0.5), ((1, 4), 0.75)):
        assert UpdatePlan.of(sp.Magnitude(), sp.OneShot(most), pattern).highest == most
        with pytest.raises(InvalidValue, match=rf"'{pattern[0]}:4' allows sparsity {most} at most, the schedule asks"):
            UpdatePlan.of(sp.Magnitude(), sp.OneShot(most + 0.01), pattern)
    assert UpdatePlan.of(sp.Magnitude(), sp.OneShot(0.99)).highest == 0.99


@pytest.mark.parametrize("other", [{"allocate": "uniform"}, {"budget": "macs"}, {"pattern": "2:4"}], ids=str)
def test_the_authors_rule_ranks_single_weights_or_channels_over_all_layers(other):
    authors = sp.Criticality(rule="authors")
    for choices in (Choices(), Choices(pattern="channel"), Choices(start="random")):
        choices.check(authors)
    with pytest.raises(InvalidValue, match="rule='authors' is their global ranking"):
        Choices(**other).check(authors)
    Choices(**other).check(sp.Criticality())
