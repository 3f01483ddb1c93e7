"""Schedules, quotas and counts against numbers worked out by hand."""

import pytest
import torch

from spikeprune.core.allocate import kept, lamp_score, quotas
from spikeprune.core.errors import InvalidValue
from spikeprune.core.schedule import Constant, Cosine, Cubic, Linear, Until, decaying
from spikeprune.methods.base import regrow_schedule
from spikeprune.methods.criticality import Criticality


def test_cubic_39_events_of_the_paper():
    # 200 epochs of 391 steps, an event every 2,000: floor(78,200 / 2,000) = 39, the last at step 78,000.
    schedule = Cubic(to=0.9, begin=0, end=200 * 391, every=2000)
    steps = schedule.steps()
    assert len(steps) == 39
    assert steps[0] == 2000
    assert steps[-1] == 78_000
    targets = [schedule.value(n, 39) for n in range(1, 40)]
    # s_n = .9 (1 - (1 - n/39)^3):  n = 1: 1 - (38/39)^3 = 1 - .92503 = .07497, times .9 = .06748
    #                               n = 2: 1 - (37/39)^3 = 1 - .85391 = .14609, times .9 = .13148
    assert targets[:3] == pytest.approx([0.06747, 0.13148, 0.19213], abs=5e-6)
    assert targets[9] == pytest.approx(0.53, abs=5e-3)  # n = 10: (29/39)^3 = .4111, .9 * .5889 = .5300
    assert targets[19] == pytest.approx(0.796, abs=5e-4)
    assert targets[29] == pytest.approx(0.889, abs=5e-4)
    assert targets[-1] == 0.9  # exactly, not .9000000000000001
    assert targets == sorted(targets)


def test_last_event_meets_any_target_exactly():
    for to in (0.95, 0.98, 0.9, 0.7, 1 / 3):
        for count in (1, 3, 7, 39, 78):
            for kind in (Cubic, Linear, Cosine):
                assert kind(to=to).value(count, count) == to
            assert Constant(to).value(1, count) == to


def test_tiny_imagenet_has_78_events():
    assert len(Cubic(to=0.9, begin=0, end=200 * 782, every=2000).steps()) == 78  # 156,400 / 2,000 = 78.2


def test_linear_and_cosine_half_way():
    assert Linear(to=0.8).value(1, 2) == pytest.approx(0.4)  # 0 + .8 * 1/2
    assert Cosine(to=0.8).value(1, 2) == pytest.approx(0.4)  # .8 - .8 (1 + cos(pi/2)) / 2 = .8 - .4
    assert Cosine(to=0.8).value(1, 4) == pytest.approx(0.8 - 0.8 * (1 + 2**-0.5) / 2)  # cos(pi/4) = 1/sqrt 2


def test_regrow_share_decays_to_zero():
    # r (1 + cos(pi (n - 1) / (M - 1))) / 2 for M = 5: cosines 1, .7071, 0, -.7071, -1
    schedule = regrow_schedule(Criticality(regrow=0.2))
    shares = [schedule.share(n, 5, step=0) for n in range(1, 6)]
    assert shares == pytest.approx([0.2, 0.2 * 1.70711 / 2, 0.1, 0.2 * 0.29289 / 2, 0.0], abs=1e-6)
    assert shares[-1] == 0.0
    assert decaying(0.2).share(1, 1, step=0) == pytest.approx(0.2)  # a single event regrows r itself
    constant = regrow_schedule(Criticality(regrow=Constant(0.2)))
    assert [constant.share(n, 5, step=0) for n in range(1, 6)] == [0.2] * 5

    early = regrow_schedule(Criticality(regrow=Until(initial=0.2)))  # p = 0, 1/4, 1/2, 3/4, 1; until 4/5
    assert [early.share(n, 5, step=0) for n in range(1, 6)] == [0.2, 0.2, 0.2, 0.2, 0.0]
    with pytest.raises(InvalidValue, match="until"):
        Until(until=0.0)


def test_regrow_share_with_an_end_of_its_own():
    # From .4 down to 0 between steps 0 and 100, then none: at steps 50, 100, 150.
    schedule = Linear(to=0.0, initial=0.4, begin=0, end=100)
    assert [schedule.share(n, 3, step=50 * n) for n in (1, 2, 3)] == pytest.approx([0.2, 0.0, 0.0])


def test_kept_counts():
    # floor(N (1 - s) + 1e-6)
    assert kept(14_715_584, 0.9) == 1_471_558  # 1,471,558.4
    assert kept(10, 0.9) == 1  # 10 * (1 - .9) = .9999999999999998 in floating point; the 1e-6 mends it
    assert kept(768, 0.95) == 38  # 38.4
    assert kept(3, 0.5) == 1
    assert kept(7, 0.0) == 7


def test_erk_by_hand():
    # Layers [4, 2] and [8, 8]: sums of dimensions 6 and 16, so ERK wants 6 : 16. Of 22 kept: 6 and 16.
    weights = {"a": torch.zeros(4, 2), "b": torch.zeros(8, 8)}
    assert quotas("erk", weights, 22, {"a": 0, "b": 0}) == {"a": 6, "b": 16}
    # Of 40: 40 * 6/22 = 10.9 is more than layer a holds, so a is full (8) and b takes the other 32.
    assert quotas("erk", weights, 40, {"a": 0, "b": 0}) == {"a": 8, "b": 32}
    # A conv [4, 2, 3, 3] counts its kernel too: 4 + 2 + 3 + 3 = 12 against 6 for a.
    conv = {"a": torch.zeros(4, 2), "c": torch.zeros(4, 2, 3, 3)}
    assert quotas("erk", conv, 9, {"a": 0, "c": 0}) == {"a": 3, "c": 6}


def test_uniform_rounds_by_largest_remainder():
    # 7 of 20 over layers of 3, 7, 10: wants 1.05, 2.45, 3.5; floors 1, 2, 3 leave one, which goes to the .5.
    weights = {"a": torch.zeros(3), "b": torch.zeros(7), "c": torch.zeros(10)}
    assert quotas("uniform", weights, 7, dict.fromkeys(weights, 0)) == {"a": 1, "b": 2, "c": 4}


def test_lamp_by_hand():
    # w^2 = 1, 4, 9: the smallest over 14, the middle over 13, the largest over 9.
    score = lamp_score(torch.tensor([-2.0, 1.0, 3.0]))
    assert score.tolist() == pytest.approx([4 / 13, 1 / 14, 1.0])
    # Every layer's largest has score 1. Kept 3 of a = (1, 2, 3), b = (10, 10): ties in order: a's 1, b's (1, 1/2).
    weights = {"a": torch.tensor([1.0, 2.0, 3.0]), "b": torch.tensor([10.0, 10.0])}
    assert quotas("lamp", weights, 3, {"a": 0, "b": 0}) == {"a": 1, "b": 2}
