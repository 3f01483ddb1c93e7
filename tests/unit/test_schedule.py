"""Schedules as objects: when their events are, and what they refuse."""

import math

import pytest
import torch

from spikeprune.core.errors import InvalidValue
from spikeprune.core.schedule import (
    SCHEDULES,
    Constant,
    Cubic,
    Linear,
    OneShot,
    _check_steps,
    duration,
    names,
    turnover_steps,
)


def test_names():
    assert names() == ["constant", "cosine", "cubic", "geometric", "linear", "oneshot"]


def test_events_count_from_begin():
    assert Cubic(to=0.5, begin=100, end=200, every=30).steps() == (130, 160, 190)
    assert OneShot(0.5, begin=7).steps() == (8,)
    assert OneShot(0.5).steps() == (1,)


@pytest.mark.parametrize("kind", sorted(SCHEDULES))
def test_bad_values_are_refused_when_made(kind):
    make = SCHEDULES[kind]
    for to, hint in ((95, "for 95 % pass 0.95"), (1.0, "pass 0.8"), (-0.1, "pass 0.8"), (float("nan"), "pass 0.8")):
        with pytest.raises(InvalidValue, match=hint) as caught:
            make(to=to)
        assert 20 <= len(str(caught.value)) <= 300
    for arguments in ({"begin": -1}, {"every": 0}, {"begin": 10, "end": 10}, {"end": 5, "every": 6}):
        with pytest.raises(InvalidValue) as caught:
            make(to=0.5, **arguments)
        assert 20 <= len(str(caught.value)) <= 300


def test_no_events_without_end_and_every():
    with pytest.raises(InvalidValue, match="needs begin, end and every"):
        Constant(0.5).steps()


def test_sparsity_may_start_above_zero():
    assert Linear(to=0.9, initial=0.5).value(1, 2) == pytest.approx(0.7)


def test_durations():
    assert duration("200ep", 391) == 78_200
    assert duration("2000it", 391) == 2000
    assert duration("0.5ep", 391) == 196  # 195.5, to the nearest even
    for text in ("200", "ep", "3 days", "-1it"):
        with pytest.raises(InvalidValue, match="reads like"):
            duration(text, 391)


def test_a_duration_in_turnovers_of_a_weight():
    assert turnover_steps(0.3, 1e-4, 0.9) == pytest.approx(0.1 / (2 * 0.3 * 1e-4))  # 1,667 steps: the paper's setting
    assert turnover_steps(0.1, 0.0) is None
    assert duration("0.5turnover", 391, 1000.0) == 500
    with pytest.raises(InvalidValue, match="without weight decay no weight turns over"):
        duration("0.5turnover", 391)


def test_weight_decay_shrinks_the_square_of_a_weight_by_e_in_a_turnover():
    """SGD with momentum on a weight whose loss says nothing: what is left of it after one turnover."""
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.3, momentum=0.9, weight_decay=5e-4)
    weight.grad = torch.zeros(1)
    for _ in range(round(turnover_steps(0.3, 5e-4, 0.9))):
        optimizer.step()
    assert weight.item() ** 2 == pytest.approx(math.exp(-1), rel=0.05)


def test_a_distance_that_is_longer_than_the_time_is_refused():
    with pytest.raises(InvalidValue, match="no mask update fits between step 10 and 20 at one every 15 steps"):
        Cubic(to=0.5, begin=10, end=20, every=15)
    assert Cubic(to=0.5, begin=10, end=20, every=10).steps() == (20,)


def test_the_last_mask_update_has_the_target_itself():
    """And not a number beside it: 0.3 + (0.9 - 0.3) is 0.9000000000000001."""
    for kind in (Cubic, Linear, SCHEDULES["cosine"], SCHEDULES["geometric"]):
        for initial in range(0, 95, 5):
            schedule = kind(to=0.9, initial=initial / 100)
            assert schedule.at(1.0) == 0.9
            assert schedule.value(7, 7) == 0.9


def test_a_regrow_share_has_its_first_value_first_and_its_last_value_last():
    share = Linear(to=0.0, initial=0.2)
    assert [share.share(n, 1, step=9) for n in (1,)] == [0.2]
    assert [share.share(n, 2, step=9) for n in (1, 2)] == [0.2, 0.0]
    assert [share.share(n, 3, step=9) for n in (1, 2, 3)] == [0.2, 0.1, 0.0]


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("2ep", r"in code pass 2 \* len\(loader\) \("), ("300it", r"in code pass 300 \("),
        ("0.5turnover", r"in code pass 0.5 \* turnover_steps\(lr, weight_decay, momentum\) \("),
        ("soon", "in code pass an int such as 2000"), (2.5, "got '2.5'; in code pass an int"), (True, "got 'True'"),
    ],
)  # fmt: skip
def test_a_duration_as_a_text_is_for_recipes(text, hint):
    with pytest.raises(InvalidValue, match=f"end counts optimizer steps as a whole number.*{hint}"):
        _check_steps("end", text)
    _check_steps("end", 300)
    _check_steps("end", None)


def test_a_million_mask_updates_are_allowed():
    assert Cubic(to=0.5, end=1_000_000, every=1).every == 1
    with pytest.raises(InvalidValue, match="1,000,001 mask updates between step 0 and 1000001 are more than 1,000,000"):
        Cubic(to=0.5, end=1_000_001, every=1)
