"""Agreement between ranks, without processes: what each rank sends is kept, and all of it is handed to each."""

import pytest
import torch

from spikeprune.core.errors import InvalidValue
from spikeprune.upkeep import ranks
from spikeprune.upkeep.gradients import KeptGradients

CPU = torch.device("cpu")


class Sent(Exception):
    """A rank has sent its numbers."""


def together(monkeypatch, *calls):
    """The error of each rank, or None, where rank k makes the k-th call while the others make theirs."""
    sent: list[torch.Tensor] = []

    def send(found, mine):
        sent.append(mine.clone())
        raise Sent

    def receive(found, mine):
        for place, other in zip(found, sent, strict=True):
            place.copy_(other)

    monkeypatch.setattr(ranks.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(ranks.dist, "get_world_size", lambda: len(calls))
    monkeypatch.setattr(ranks.dist, "all_gather", send)
    for call in calls:
        with pytest.raises(Sent):
            call()
    monkeypatch.setattr(ranks.dist, "all_gather", receive)
    errors = []
    for call in calls:
        try:
            errors.append(call())
        except InvalidValue as error:
            errors.append(str(error))
    return errors


def test_settings_that_differ_are_named_on_every_rank(monkeypatch):
    def rank(**changed):
        settings = {"seed": 0, "method": "magnitude", **{f"setting{i}": i for i in range(30)}, **changed}
        return lambda: ranks.check_alike(settings, CPU)

    assert together(monkeypatch, rank(), rank(), rank()) == [None] * 3
    errors = together(monkeypatch, rank(), rank(), rank(seed=7))
    assert all("the Pruner of rank 2 has another seed than that of rank 0" in error for error in errors)
    assert ["(here seed is 7)" in error for error in errors] == [False, False, True]


def test_an_uneven_number_of_steps_is_told_on_every_rank(monkeypatch):
    def rank(kind, step):
        return lambda: ranks.meet(kind, step, CPU)

    assert together(monkeypatch, rank(ranks.UPDATES, 4), rank(ranks.UPDATES, 4)) == [None, None]
    for second, words in (((ranks.UPDATES, 6), "rank 1 updates at step 6"), ((ranks.ENDS, 4), "rank 1 ends at step 4")):
        errors = together(monkeypatch, rank(ranks.UPDATES, 4), rank(*second))
        assert all(f"uneven number of steps (rank 0 updates at step 4, {words})" in error for error in errors)


def test_one_process_agrees_with_itself():
    ranks.check_alike({"seed": 0}, CPU)
    ranks.meet(ranks.ENDS, 3, CPU)
    assert ranks.sum_over_ranks(torch.tensor([3.0])).tolist() == [3.0]


def test_kept_gradients_are_summed_over_ranks_once():
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.tensor([1.0, 2.0])
    kept = KeptGradients()

    def twice(tensor):
        return 2 * tensor  # the sum over two ranks that have the same

    for _ in range(2):
        kept.keep({"w": parameter})
        assert not kept.empty
        assert [kept.summed(twice)["w"].tolist() for _ in range(2)] == [[2.0, 4.0]] * 2
        kept.take({"w": torch.tensor([5.0])})
        assert [kept.summed(twice)["w"].tolist() for _ in range(2)] == [[10.0]] * 2
        kept.forget()
        assert kept.empty
        assert kept.summed(twice) == {}
