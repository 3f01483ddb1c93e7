"""Rows drawn near the threshold: exact chances, sums without bias and with the variance that theory gives."""

import pytest
import torch
from torch import Tensor, nn

import spikeprune as sp
from nets import batch, conv_net
from spikeprune.core.errors import InvalidValue
from spikeprune.squeeze.layers import row_weights
from spikeprune.squeeze.near import chances, thinned
from spikeprune.squeeze.rows import Rows

DRAWS = 600
pytestmark = pytest.mark.filterwarnings("ignore:.*so the ridge decides")


def rows(count: int = 400) -> Rows:
    generator = torch.Generator().manual_seed(0)
    x = (torch.rand(1, 5, count, generator=generator) < 0.3).float()
    c = torch.rand(3, count, generator=generator) ** 6  # most rows are far from the threshold
    return Rows(x, c, count)


def loud_net() -> nn.Sequential:
    net = conv_net().eval()
    with torch.no_grad():
        for norm in (net[1], net[5]):
            norm.weight.mul_(3)
            norm.bias.add_(0.5)
    return net


def energy(found: Rows) -> Tensor:
    """sum_r counts c x^2, [O, I]."""
    assert found.c is not None
    c = found.c if found.counts is None else found.c * found.counts
    return (c @ found.x[0].double().square().T.to(c.dtype)).double()


def test_chances_by_hand():
    # mean c is 1, so the weights are 0.5, 0.5, 0.5, 2.5; two rows: the last is sure, one third of a row from the others
    p = chances(torch.tensor([[0.5, 0.5, 0.5, 2.5]]), 2, eps=0.0)
    torch.testing.assert_close(p, torch.tensor([1 / 3, 1 / 3, 1 / 3, 1.0], dtype=torch.float64))
    assert chances(torch.ones(2, 3), 5, eps=0.1).tolist() == [1, 1, 1]


def test_drawn_sums_are_unbiased_and_their_variance_is_the_known_one():
    whole = rows()
    assert whole.c is not None
    p = chances(whole.c, 60, eps=0.2)
    assert float(p.sum()) == pytest.approx(60)
    terms = whole.c[:, None, :].double() * whole.x.double().square()  # [O, I, R]
    variance = ((1 - p) / p * terms.square()).sum(2)
    drawn = torch.stack([energy(thinned(whole, 60, seed)) for seed in range(DRAWS)])
    off = (drawn.mean(0) - energy(whole)).abs()
    assert bool((off <= 5 * (variance / DRAWS).sqrt()).all())  # beyond 5 standard errors once in 10^6
    assert bool((drawn.var(0) / variance).sub(1).abs().max() < 0.5)
    uniform = (400 / 60 - 1) * terms.square().sum(2)
    assert float(variance.sum()) < 0.6 * float(uniform.sum())  # fewer rows give the same accuracy


def test_weights_of_rows_count_for_the_rows_they_stand_for():
    c = torch.tensor([[1.0, 3.0, 3.0, 3.0]])
    every = row_weights(c, 1.0, 0.1, per_output=True)
    merged = row_weights(torch.tensor([[1.0, 3.0]]), 1.0, 0.1, per_output=True, counts=torch.tensor([1.0, 3.0]))
    torch.testing.assert_close(merged, torch.stack([every[:, 0], 3 * every[:, 1]], 1))


def test_a_squeeze_draws_by_criticality_and_is_refused_without_it():
    x = [batch(i)[0] for i in range(3)]
    net, plain = loud_net(), loud_net()
    out = sp.squeeze(net, x, 0.8, rows=20, oversample=8)
    sp.squeeze(plain, x, 0.8, rows=20)
    assert not torch.equal(net[4].weight, plain[4].weight)
    used = {row.name: row.rows for row in out.layers}
    assert 5 <= used["4.weight"] <= 45  # 20 in the mean
    with pytest.raises(InvalidValue, match="leave oversample at 1"):
        sp.squeeze(conv_net(), x, 0.5, oversample=2, weighting="none")
