"""The history of mask updates, worked by hand: which weights came back, and how many of them the next cut leaves."""

import torch

from spikeprune.core.mask import Outcome
from spikeprune.core.schedule import MaskUpdate
from spikeprune.prune.history import History


def bits(text):
    return {"w": torch.tensor([letter == "1" for letter in text])}


def text(masks):
    return "".join("1" if alive else "0" for alive in masks["w"].tolist())


def outcome(*, reference, survivors, regrown):
    alive = {"w": bits(survivors)["w"] | bits(regrown)["w"]}
    return Outcome(alive, bits(survivors), bits(regrown), bits(reference))


def update(number):
    return MaskUpdate(number, 10 * number, 0.5, None)


def three_updates():
    """Six weights, four of them kept: two come back, then one at the same sparsity, then one after a cut to three."""
    history = History()
    first = outcome(reference="111100", survivors="110000", regrown="000110")
    second = outcome(reference="110110", survivors="110100", regrown="001000")
    third = outcome(reference="101000", survivors="100000", regrown="000001")
    history.add(update(1), bits("111111"), first, cut=True)
    history.add(update(2), bits("110110"), second, cut=True)
    history.add(update(3), bits("111100"), third, cut=True, asked=3)
    return history


def test_survival_is_told_by_the_next_mask_update():
    history = three_updates()
    # The second cuts nothing to the target, so its cut for growth judges: of the weights 3 and 4 it leaves 3.
    # The third cuts to the target, which leaves weight 2, and its cut for growth takes that too.
    assert [r.survived for r in history.rounds] == [1, 1, None]


def test_the_counts_of_each_mask_update():
    first, second, third = three_updates().rounds
    assert [(r.step, r.kept, r.regrown) for r in (first, second, third)] == [(10, 4, 2), (20, 4, 1), (30, 2, 1)]
    assert first.rescued == 1  # the target cuts 4 and 5, and 4 comes back
    assert (second.rescued, third.rescued) == (0, 0)  # nothing is cut to the target; 5 was dead already
    assert (second.beyond, third.beyond) == (None, -1)
    assert (first.layers["w"].kept, first.layers["w"].regrown) == (4, 2)


def test_what_came_back_counts_until_it_is_cut():
    history, alive, ever = History(), bits("111111"), []
    for number, (survivors, regrown) in enumerate([("110000", "000110"), ("110100", "001000"), ("100100", "000001")]):
        after = outcome(reference="111111", survivors=survivors, regrown=regrown)
        history.add(update(number + 1), alive, after, cut=True)
        alive = after.alive
        ever.append(text(history.ever_regrown))
    assert ever == ["000110", "001100", "000101"]
    assert text(history.alive(bits("000100"))) == "000100"
    assert text(history.alive(bits("110000"))) == "000000"


def test_a_warning_where_fewer_than_2_in_100_survive(caplog):
    def told(survived):
        caplog.clear()
        history = History()
        all_, none = torch.ones(200, dtype=torch.bool), torch.zeros(200, dtype=torch.bool)
        regrown = torch.arange(200) < 100
        left = torch.arange(200) < survived
        history.add(update(1), {"w": all_}, Outcome({"w": regrown}, {"w": none}, {"w": regrown}, {"w": all_}), cut=True)
        for number in (2, 3):
            after = Outcome({"w": left}, {"w": left}, {"w": none}, {"w": left})
            history.add(update(number), {"w": regrown if number == 2 else left}, after, cut=True)
        return [record.getMessage() for record in caplog.records]

    (message,) = told(1)
    assert message.startswith("spikeprune: 1 of 100 weights regrown at step 10 outlived the next cut")
    assert told(2) == []
