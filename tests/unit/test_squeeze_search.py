"""The bisection behind `tolerance`."""

import pytest

from spikeprune.squeeze.search import highest


@pytest.mark.parametrize("limit", [0.0, 0.5, 0.9, 0.95, 0.99, 0.999])
def test_it_finds_the_limit_within_a_step(limit):
    tried = []

    def passes(sparsity):
        tried.append(sparsity)
        return sparsity <= limit

    found = highest(passes)
    assert found <= limit
    assert len(tried) == 7
    if limit < 0.99:
        assert 1 - found < (1 - limit) * 2 ** (1 / 16) + 1e-12
