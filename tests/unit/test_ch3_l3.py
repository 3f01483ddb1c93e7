"""CH3-L3 growth: scores worked by hand, what it sees, and layers that get nothing back."""

import pytest
import torch

import spikeprune as sp
from nets import conv_net, sgd, train
from spikeprune.core.errors import InvalidValue
from spikeprune.methods.ch3_l3 import Ch3L3, predicted


def test_scores_worked_by_hand():
    # Rows 0: columns 0, 1; row 1: columns 1, 2; row 2: column 3 alone.
    mask = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1]]).bool()
    # common rows: (0, 1) share column 1; deg = 2, 2, 1. E[0, 1] = 1 / max(2 - 1, 1) = 1, E[i, i] = 1 / max(0, 1) = 1.
    # Link (0, 2): row 1 has it: 1. Columns: (1, 2) share row 1, (0, 1) share row 0; deg = 1, 2, 1, 1.
    #   E'[2, 1] = 1 / max(2 - 1, 1) = 1 and column 1 has row 0, so the transposed part adds 1: 2 in all.
    # Link (0, 3): row 2 shares nothing with row 0, column 3 nothing with columns 0 and 1: 0.
    scores = predicted(mask)
    assert scores[0, 2] == 2
    assert scores[1, 0] == 2
    assert scores[0, 3] == scores[2, 0] == 0


def test_a_busy_neighbour_counts_less():
    # Row 1 shares column 0 with row 0 and has three more links: a path over it counts 1 / 3.
    mask = torch.zeros(2, 4).bool()
    mask[0, 0] = True
    mask[1] = True
    # Rows: 1 / (4 - 1) for link (0, 3); columns: column 0 has rows 0, 1 and shares row 1 with column 3: 1 / (2 - 1).
    assert predicted(mask)[0, 3] == pytest.approx(1 / 3 + 1)


def test_growth_keeps_layer_sizes_and_reads_what_the_cut_left():
    seen = []

    class Spy(Ch3L3):
        def regrow_score(self, evidence):
            seen.append((evidence.survivors, evidence.masks))
            return super().regrow_score(evidence)

    model = conv_net()
    optimizer = sgd(model)
    pruner = sp.Pruner(model, Spy(regrow=sp.Constant(0.3)), sp.Constant(0.8, begin=0, end=6, every=2), start="erk")
    before = {n: int(m.sum()) for n, m in pruner.masks.items()}
    pruner.attach(optimizer)
    train(model, optimizer, 6)
    assert {n: int(m.sum()) for n, m in pruner.masks.items()} == before
    assert len(seen) == 3
    for survivors, masks in seen:
        assert all(int(survivors[n].sum()) == before[n] - int(0.3 * before[n]) for n in before)
        assert all(bool((survivors[n] <= masks[n]).all()) for n in before)
    assert all(r.regrown for r in pruner.rounds)


@pytest.mark.parametrize("method", ["criticality", "random", "gradient", "rigl", "ch3-l3", "last-magnitude"])
def test_layers_named_in_regrow_exclude_get_nothing_back(method):
    def regrown(**keywords):
        model = conv_net()
        optimizer = sgd(model)
        pruner = sp.Pruner(model, method, sp.Cubic(to=0.8, end=6, every=2), **keywords).attach(optimizer)
        train(model, optimizer, 6)
        assert pruner.alive == 153  # the target is met all the same: floor(768 * .2)
        return {n: sum(r.layers[n].regrown for r in pruner.rounds) for n in pruner.masks}

    assert regrown(regrow_exclude=["0", "8"])["0.weight"] == regrown(regrow_exclude=["0", "8"])["8.weight"] == 0
    assert regrown(regrow_exclude=["0", "8"])["4.weight"] > 0
    assert regrown()["0.weight"] > 0


def test_a_name_that_matches_no_layer_is_refused():
    with pytest.raises(InvalidValue, match="0 of 3 layers matched regrow_exclude='haed'"):
        sp.Pruner(conv_net(), "random", sp.OneShot(0.5), regrow_exclude="haed")
    with pytest.raises(InvalidValue, match="pick must be one of 'top', 'sample', got 'best'"):
        Ch3L3(pick="best")
