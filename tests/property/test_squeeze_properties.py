"""What holds for any sparsity, seed and data: exact counts, nested masks, and the estimate from drawn rows."""

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spikingjelly.activation_based import layer

import spikeprune as sp
from nets import batch, conv_net
from spikeprune.squeeze.rows import Drawing, collect


@settings(max_examples=12, deadline=None)
@given(sparsity=st.floats(0.0, 0.98), more=st.floats(0.0, 1.0), seed=st.integers(0, 5))
def test_counts_are_exact_and_masks_nested(sparsity, more, seed):
    net = conv_net(seed=seed).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first = sp.squeeze(net, [batch(seed)], sparsity, rounds=3)
        higher = sparsity + (0.99 - sparsity) * more
        second = sp.squeeze(net, [batch(seed)], higher, rounds=2)
    assert first.masks.alive == int(768 * (1 - sparsity) + 1e-6)
    assert second.masks.alive == min(first.masks.alive, int(768 * (1 - higher) + 1e-6))
    assert all(bool((second.masks[n] <= first.masks[n]).all()) for n in first.masks)


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_the_gram_matrix_of_drawn_rows_estimates_that_of_all_rows(share):
    """Rows of a sample without replacement: the mean over 200 draws lies within five standard errors everywhere.

    One estimate S/share of a sum over R rows with variance v of its terms has variance R v (1 - share) / share.
    """
    torch.manual_seed(0)
    conv = layer.Conv2d(2, 3, 3, padding=1)
    x = torch.rand(4, 2, 6, 6).double()
    conv = conv.double()

    def rows(drawn_share, seed):
        drawing = Drawing(conv_model, None, {"0.weight": [conv]}, {}, {"0.weight": drawn_share}, None, seed)
        return collect(conv_model, None, [x], drawing)["0.weight"].x[0].double()

    conv_model = torch.nn.Sequential(conv)
    everything = rows(1.0, 0)
    count = everything.shape[1]
    assert count == 4 * 36
    terms = everything[:, None] * everything[None]  # [I, I, R]
    estimates = torch.stack([(s @ s.T) / share for s in (rows(share, seed) for seed in range(200))])
    assert rows(share, 1).shape[1] == int(share * count)
    scale = count * share / int(share * count)
    variance = count * terms.var(-1) * (1 - share) / share
    bound = 5 * (variance / 200).sqrt() + 1e-9
    off = (estimates.mean(0) * scale - terms.sum(-1)).abs()
    assert bool((off <= bound).all())
    # Twice the rows, half the variance (and the finite population helps): a single draw is within its own bound.
    assert float(((estimates[0] * scale - terms.sum(-1)).abs() / variance.sqrt().clamp_min(1e-9)).max()) < 6
