"""Every number of analysis.json against a case worked by hand: features, entropy, avalanches, survival, importance."""

import json
import math
from dataclasses import replace

import pytest
import torch

from spikeprune.lab.study import avalanches, mechanism
from spikeprune.lab.study.features import consistency, correlation, entropy, feature, inverted_min_max
from spikeprune.record.epoch import Epoch
from spikeprune.record.round import Round


def test_a_feature_is_spikes_over_time_and_space():
    spikes = torch.zeros(2, 1, 2, 2, 3)  # T N C H W
    spikes[0, 0, 0, 0, 0] = spikes[1, 0, 0, 1, 2] = spikes[1, 0, 0, 0, 1] = 1
    spikes[:, 0, 1] = 1
    assert feature(spikes).tolist() == [[3 / 12, 1.0]]
    assert feature(torch.tensor([[[1.0, 0.0]], [[1.0, 1.0]]])).tolist() == [[1.0, 0.5]]  # a Linear layer: T only


def test_consistency_worked_by_hand():
    train = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 2.0]])
    test = torch.tensor([[0.0, 1.0], [2.0, 2.0]])
    found = consistency(train, torch.tensor([0, 0, 1]), test, torch.tensor([1, 0]), 3)
    # Class 0, train: channel 0 has 1 and 3, variance 1; channel 1 none: mean 0.5. Class 2 is nowhere.
    assert found["variance_train"] == [0.5, 0.0, None]
    assert found["variance_test"] == [0.0, 0.0, None]
    # Means: train (2, 0) and (0, 2), test (2, 2) and (0, 1): cosines 1/sqrt(2) and 1.
    assert found["cosine"] == [pytest.approx(1 / math.sqrt(2)), pytest.approx(1.0), None]
    # Centres (1, 1) and (1, 1.5): (1, -1) with (1, .5) gives .5/sqrt(2 * 1.25); (-1, 1) with (-1, -.5) the same.
    assert found["cosine_centred"] == [pytest.approx(0.5 / math.sqrt(2.5)), pytest.approx(0.5 / math.sqrt(2.5)), None]
    assert found["mean_cosine"] == pytest.approx((1 / math.sqrt(2) + 1) / 2)
    assert found["mean_variance_train"] == 0.25


def test_a_silent_layer_has_no_cosine():
    silent = torch.zeros(2, 3)
    found = consistency(silent, torch.tensor([0, 1]), silent, torch.tensor([0, 1]), 2)
    assert found["cosine"] == [None, None]
    assert found["cosine_centred"] == [None, None]
    assert found["mean_cosine"] is None


def test_the_authors_normalisation_is_inverted_and_leaves_constant_images_out():
    turned, there = inverted_min_max(torch.tensor([[0.0, 1.0, 0.5], [0.2, 0.2, 0.2]]))
    assert turned.tolist() == [[1.0, 0.0, 0.5]]
    assert there.tolist() == [True, False]


def test_entropy_worked_by_hand():
    # Four images in four bins: 2 bits; two and two: 1 bit; always the same: 0.
    features = torch.tensor([[0.0, 0.0, 0.3], [0.25, 0.0, 0.3], [0.5, 1.0, 0.3], [1.0, 1.0, 0.3]])
    assert entropy(features).tolist() == pytest.approx([2.0, 1.0, 0.0])


def test_correlation_of_lines_and_of_nothing():
    line = torch.tensor([1.0, 2.0, 3.0])
    assert correlation(line, 2 * line + 1) == pytest.approx(1.0)
    assert correlation(line, -line) == pytest.approx(-1.0)
    assert correlation(line, torch.tensor([1.0, -2.0, 1.0])) == pytest.approx(0.0)
    assert correlation(line, torch.ones(3)) is None
    assert correlation(line[:2], line[:2]) is None


def test_branching_worked_by_hand():
    # Each image halves its spikes: A(t+1) = A(t) / 2, so every estimate is 1/2.
    halving = torch.tensor([[8.0, 4.0, 2.0], [16.0, 8.0, 4.0]])
    assert avalanches.branching(halving) == pytest.approx({"pooled": 0.5, "within": 0.5, "ratio": 0.5})
    # Two images with steady but different activity: 1 between images, nothing within them.
    steady = avalanches.branching(torch.tensor([[2.0, 2.0, 2.0], [5.0, 5.0, 5.0]]))
    assert steady["pooled"] == pytest.approx(1.0)
    assert steady["within"] is None
    # A(t+1) = 10 - A(t): -1.
    assert avalanches.branching(torch.tensor([[2.0, 8.0, 2.0, 8.0]]))["pooled"] == pytest.approx(-1.0)
    nothing = {"pooled": None, "within": None, "ratio": None}
    assert avalanches.branching(torch.zeros(3, 4)) == nothing
    assert avalanches.branching(torch.ones(3, 1)) == nothing


def test_a_driven_branching_process_gives_back_its_ratio():
    # A(t+1) ~ Poisson(m A(t) + h): the estimate needs no stationarity. 20,000 images of 5 steps.
    generator, m, h = torch.Generator().manual_seed(0), 0.8, 4.0
    steps = [torch.poisson(torch.full((20_000,), 20.0), generator=generator)]
    for _ in range(4):
        steps.append(torch.poisson(m * steps[-1] + h, generator=generator))
    assert avalanches.branching(torch.stack(steps, 1))["pooled"] == pytest.approx(m, abs=0.02)


def test_avalanches_are_runs_between_silent_steps():
    activity = torch.tensor([[0.0, 2.0, 3.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0, 0.0], [4.0, 0.0, 0.0, 0.0, 0.0]])
    assert avalanches.avalanches(activity) == ([5, 1, 4], [2, 1, 1])


def test_the_exponent_worked_by_hand():
    # At the best a: mean(ln s) = -zeta'(a) / zeta(a). At a = 2 that is 0.937548 / 1.644934 = 0.569961, which 8,223
    # twos among 10,000 ones and twos have: 0.8223 ln 2 = 0.569975.
    assert avalanches.exponent([1] * 1777 + [2] * 8223) == pytest.approx(2.0, abs=1e-3)
    assert avalanches.exponent([1] * 100) is None
    assert avalanches.exponent([1] * 49) is None


def test_the_summary_counts_layers_apart_and_branching_together():
    found = avalanches.summary({"a": torch.tensor([[1.0, 0.0]]), "b": torch.tensor([[0.0, 3.0]])})
    assert found["spikes_per_image"] == {"a": 1.0, "b": 3.0}
    assert found["layer_ratio"] == [3.0]
    assert found["avalanches"]["count"] == 2
    assert found["avalanches"]["mean_size"] == 2.0
    assert found["avalanches"]["cut_by_the_end"] == 1
    assert found["branching"]["ratio"] == 3.0
    json.dumps(avalanches.summary({"a": torch.zeros(2, 3)}), allow_nan=False)


ROUNDS = [
    Round(step=10, target=0.5, kept=50, regrown=10, rescued=4, survived=3),
    Round(step=20, target=0.8, kept=20, regrown=5, rescued=3, survived=None),
]


def test_survival_worked_by_hand():
    found = mechanism.survival(ROUNDS, prunable=100, regrown_alive=6, alive=20)
    # Newly cut: 100 - 50 and 50 - 20. Of the 10 judged by a later cut 3 survived; of all 15 regrown 6 are alive.
    assert [event["rescued_share"] for event in found["events"]] == [4 / 50, 3 / 30]
    assert [event["survived_share"] for event in found["events"]] == [0.3, None]
    assert (found["regrown"], found["survived"], found["survived_share"]) == (15, 3, 0.3)
    assert (found["to_end"], found["share_of_alive"], found["alive_at_end"]) == (6 / 15, 6 / 20, 6)


def test_survival_of_nothing_is_none():
    still = [replace(ROUNDS[0], regrown=0, rescued=0, survived=0), replace(ROUNDS[1], regrown=0, rescued=0)]
    found = mechanism.survival(still, prunable=100, regrown_alive=None, alive=20)
    assert found["to_end"] is None
    assert found["survived_share"] is None
    assert found["events"][0]["rescued_share"] is None
    constant = mechanism.survival([replace(ROUNDS[0], kept=100)], prunable=100, regrown_alive=2, alive=100)
    assert constant["events"][0]["rescued_share"] is None  # nothing was newly cut


def test_importance_within_a_run_worked_by_hand():
    weights = {"a.weight": torch.tensor([[2.0, -1.0, 0.0, 0.5]])}
    masks = {"a.weight": torch.tensor([[True, True, False, True]])}
    regrown = {"a.weight": torch.tensor([[False, False, False, True]])}
    # |w| / 2: 1, .5 for the others, .25 for the regrown one.
    assert mechanism.importance_within(weights, masks, regrown) == {
        "regrown": 0.25,
        "others": 0.75,
        "regrown_count": 1,
        "others_count": 2,
    }
    none = {"a.weight": torch.zeros(1, 4, dtype=torch.bool)}
    assert mechanism.importance_within(weights, masks, none)["regrown"] is None


def test_importance_between_runs_uses_gamma_where_channels_were_cut():
    mine = {"bn.weight": torch.tensor([1.0, -4.0, 2.0]), "conv.weight": torch.ones(3, 1)}
    theirs = {"bn.weight": torch.tensor([5.0, 1.0, 2.0]), "conv.weight": torch.ones(3, 1)}
    my_masks = {"bn.weight": torch.tensor([True, False, True])}
    their_masks = {"bn.weight": torch.tensor([False, True, True])}
    # Only mine: channel 0 with 1/4; only theirs: channel 1 with 1/5.
    assert mechanism.importance_between(mine, my_masks, theirs, their_masks) == {
        "of": "gamma",
        "only_this": 0.25,
        "only_other": pytest.approx(0.2),
        "only_this_count": 1,
        "only_other_count": 1,
    }
    same = mechanism.importance_between(mine, my_masks, theirs, my_masks)
    assert same["only_this"] is None
    assert same["only_other"] is None


def test_importance_of_weights_leaves_a_layer_of_zeros_out():
    mine = {"a.weight": torch.tensor([[1.0, 4.0]]), "z.weight": torch.zeros(1, 2)}
    masks = {name: torch.tensor([[True, True]]) for name in mine}
    less = {name: torch.tensor([[False, True]]) for name in mine}
    found = mechanism.importance_between(mine, masks, mine, less)
    assert (found["of"], found["only_this"], found["only_other"]) == ("weight", 0.25, None)


def test_the_gap_of_losses_and_what_counts_as_recovery():
    def line(epoch: int, seen: float | None, held: float | None, phase: str = "pruned") -> Epoch:
        return Epoch(
            phase=phase, epoch=epoch, step=10 * epoch, lr=0.1, train_loss=1.0, train_accuracy=0.5, seen_loss=seen,
            val_loss=held, val_accuracy=0.5, sparsity=0.0,
        )  # fmt: skip

    metrics = [line(1, 9.0, 9.0, "dense"), line(1, 1.0, 1.1), line(2, 0.8, 1.0), line(3, 0.5, 0.9), line(4, 0.4, 1.0)]
    found = mechanism.overfitting(metrics, last_event=15)
    # Event at step 15, in epoch 2: epochs 3 and 4 lie wholly after it.
    assert [e["recovery"] for e in found["epochs"]] == [False, False, True, True]
    assert [e["gap"] for e in found["epochs"]] == pytest.approx([0.1, 0.2, 0.4, 0.6])
    assert found["final_gap"] == pytest.approx(0.6)
    assert found["recovery_gap"] == pytest.approx(0.5)
    without = mechanism.overfitting([line(1, None, None)], last_event=None)
    assert (without["final_gap"], without["recovery_gap"]) == (None, None)
