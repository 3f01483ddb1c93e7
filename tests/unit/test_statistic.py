"""Streaming statistics equal whole-tensor formulas, in any number of parts."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from spikeprune.core.errors import InvalidValue, MissingEvidence
from spikeprune.core.statistic import ChannelMean, SynapseMean, as_channels, spread
from spikeprune.core.surrogate import atan

CURVE = atan().derivative


def channel_mean(batches, space="max"):
    statistic = ChannelMean(CURVE, space)
    for batch in batches:
        statistic.begin()
        for step in batch:
            statistic.step(step)
    return statistic


def whole(u, space):
    """The formula on [T, N, C, *space] at once."""
    mean = CURVE(u.double()).mean(0)
    if mean.ndim > 2:
        mean = mean.flatten(2).amax(2) if space == "max" else mean.flatten(2).mean(2)
    return mean.mean(0).float()


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 4), st.integers(1, 6), st.integers(1, 3), st.sampled_from([(), (5,), (3, 4)]),
    st.sampled_from(["max", "mean"]), st.integers(0, 999),
)  # fmt: skip
def test_streaming_equals_the_whole_tensor(T, N, C, space, reduction, seed):
    u = torch.randn(T, N, C, *space, generator=torch.Generator().manual_seed(seed))
    cut = N // 2
    parts = [u[:, :cut], u[:, cut:]] if cut else [u]
    assert_close(channel_mean(parts, reduction).result(), whole(u, reduction), rtol=1e-5, atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(5)))
def test_permuting_channels_permutes_scores(order):
    u = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(1))
    order = list(order)
    assert torch.equal(channel_mean([u[:, :, order]]).result(), channel_mean([u]).result()[order])


def test_sums_of_two_ranks_are_those_of_both_together():
    u = torch.randn(2, 6, 3, 4)
    ranks = [channel_mean([u[:, :2]]), channel_mean([u[:, 2:]])]
    for rank in ranks:
        rank.begin()
    together = sum(r.total for r in ranks) / sum(r.count for r in ranks)
    assert_close(together.float(), whole(u, "max"), rtol=1e-5, atol=1e-6)


def test_result_may_be_asked_at_any_time_and_twice():
    u = torch.randn(2, 3, 4)
    statistic = channel_mean([u])
    assert torch.equal(statistic.result(), statistic.result())
    with pytest.raises(MissingEvidence, match="no membrane potential"):
        ChannelMean(CURVE).result()


@pytest.mark.parametrize("stride", [1, 2])
def test_synapse_mean_equals_the_sum_over_pairs(stride):
    # Every (output position, input position under the kernel) pair, written out.
    T, N, I, O, K = 2, 3, 2, 4, 3
    u, x = torch.randn(T, N, O, 6 // stride, 6 // stride), torch.randn(T, N, I, 6, 6)
    statistic = SynapseMean(
        CURVE,
        lambda d, x: torch.nn.grad.conv2d_weight(x, (O, I, K, K), d, stride=stride, padding=1),
        lambda x: (x.shape[0], O, 6 // stride, 6 // stride),
    )
    for t in range(T):
        statistic.step(u[t], x[t])
    padded = F.pad(x, (1, 1, 1, 1))
    expected = torch.zeros(O, I, K, K)
    for a in range(K):
        for b in range(K):
            window = padded[..., a : a + 6 : stride, b : b + 6 : stride]
            expected[:, :, a, b] = torch.einsum("tnohw,tnihw->oi", CURVE(u), window)
    assert_close(statistic.result(), expected / (T * N * (6 // stride) ** 2), rtol=1e-4, atol=1e-6)


def test_spread_undoes_average_pooling():
    values = torch.rand(2, 3, 2, 2)
    wide = spread(values, (2, 3, 4, 4))
    assert_close(F.avg_pool2d(wide, 2) * 4, values)  # a window's four positions share its value
    assert spread(values, (2, 3, 2, 2)) is values
    for shape, wanted in (((2, 3), (2, 3, 4, 4)), ((2, 3, 4), (2, 3, 4, 4)), ((2, 3), (2, 6))):
        with pytest.raises(InvalidValue, match="cannot be laid") as caught:
            spread(torch.rand(shape), wanted)
        assert f"shape {shape} cannot be laid over a layer of shape {wanted}" in str(caught.value)


def test_as_channels():
    conv = torch.rand(2, 3, 4, 4)
    assert as_channels(conv, 3, last=False) is conv
    assert as_channels(torch.rand(2, 12), 3, last=False).shape == (2, 3, 4)  # flattened before the neuron
    tokens = torch.rand(2, 7, 5)
    assert torch.equal(as_channels(tokens, 5, last=True), tokens.movedim(-1, 1))
    with pytest.raises(InvalidValue, match="does not match a layer with 7 outputs"):
        as_channels(conv, 7, last=False)


def test_spread_undoes_average_pooling_along_a_line():
    values = torch.rand(2, 3, 4)
    wide = spread(values, (2, 3, 8))
    assert_close(F.avg_pool1d(wide, 2) * 2, values)
    assert_close(wide[..., 0], values[..., 0] / 2)
