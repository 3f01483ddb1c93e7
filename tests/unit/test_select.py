"""What selection refuses."""

import pytest
import torch

from spikeprune.core.errors import InvalidValue
from spikeprune.core.select import keep_quota, keep_top


def test_nothing_and_everything():
    scores = {"a": torch.rand(3, 2), "b": torch.rand(4)}
    assert not any(m.any() for m in keep_top(scores, 0).values())
    assert all(m.all() for m in keep_top(scores, 10).values())


def test_candidates_with_the_lowest_score_there_is():
    # -inf is a score too: it must not be confused with what stands outside the candidates.
    scores = {"a": torch.tensor([float("-inf")] * 4)}
    among = {"a": torch.tensor([False, True, False, True])}
    assert keep_top(scores, 1, among)["a"].tolist() == [False, True, False, False]


def test_a_quota_beyond_the_layer_is_refused():
    with pytest.raises(InvalidValue, match="cannot keep 4 of 3"):
        keep_quota({"a": torch.rand(3)}, {"a": 4})


def test_infinite_scores_of_both_signs_are_ranked():
    kept = keep_top({"a": torch.tensor([-torch.inf, 1.0, torch.inf])}, 2)
    assert kept["a"].tolist() == [False, True, True]


def test_nan_is_refused_with_what_to_look_at():
    with pytest.raises(InvalidValue, match="check the loss"):
        keep_top({"a": torch.rand(3), "b": torch.tensor([float("nan")])}, 2)


def test_half_precision_scores_are_ranked_exactly():
    scores = {"a": torch.arange(100, dtype=torch.bfloat16).flip(0)}
    assert keep_top(scores, 30)["a"].nonzero().flatten().tolist() == list(range(30))
