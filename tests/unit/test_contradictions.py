"""Files whose parts contradict each other are refused in one line, and their honest neighbours are read."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch

import spikeprune as sp
from nets import assert_same, batch, conv_net, sgd, train
from spikeprune.core.errors import InvalidValue, UserError
from spikeprune.core.mask import pack
from spikeprune.lab.page.page import write_report
from spikeprune.lab.recipe import from_values
from spikeprune.lab.train.folder import RunFolder, read_safetensors
from spikeprune.record.statistics import StatisticsRecord
from spikeprune.record.tensors import as_safetensors

FIXTURES = Path(__file__).parents[1] / "fixtures" / "0.1.0"
FINISHED = sorted([*(FIXTURES / "finished").iterdir(), *(f for f in (FIXTURES / "sweep").iterdir() if f.is_dir())])
SCHEDULE = sp.Cubic(to=0.9, begin=0, end=8, every=2)


@pytest.fixture
def folder(tmp_path):
    return RunFolder(Path(shutil.copytree(FINISHED[0], tmp_path / "run")))


def refused(read, words):
    with pytest.raises(UserError, match=words) as caught:
        read()
    assert "\n" not in str(caught.value)
    assert 20 <= len(str(caught.value)) <= 400


# ---- records ---------------------------------------------------------------------------------------------------------


def changed(path, change):
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))


@pytest.mark.parametrize("place", [0, -1])
def test_a_round_cannot_keep_more_weights_than_there_are(folder, place):
    weights = folder.read_record().dense.alive
    changed(folder.record, lambda tree: tree["rounds"][place].update(kept=weights, layers=None))
    folder.read_record()
    changed(folder.record, lambda tree: tree["rounds"][place].update(kept=10**9))
    refused(folder.read_record, rf"rounds\[\d+\]\.kept is 1000000000, of {weights} prunable weights")


def test_a_firing_rate_is_a_share(folder):
    changed(folder.record, lambda tree: tree["pruned"].update(firing_rate=1.0))
    folder.read_record()
    changed(folder.record, lambda tree: tree["pruned"].update(firing_rate=3))
    refused(folder.read_record, r"pruned\.firing_rate is 3, must be in \[0, 1\]")


def test_a_firing_rate_of_a_layer_is_a_share(folder):
    name = next(iter(StatisticsRecord.of_file(folder.statistics).pruned.neurons))
    changed(folder.statistics, lambda tree: tree["pruned"]["neurons"][name].update(firing_rate=3))
    refused(lambda: StatisticsRecord.of_file(folder.statistics), r"firing_rate is 3, must be in \[0, 1\]")


def test_the_rate_of_graded_outputs_is_a_share_too():
    model = conv_net()
    model[2].register_forward_hook(lambda module, given, output: 3 * output)
    rates = sp.count(model, [9 * batch(0)[0]]).firing_rates
    assert 0 < rates["2"] <= 1


# ---- masks of a run folder -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", FINISHED, ids=lambda path: path.name)
def test_the_masks_of_earlier_runs_are_those_of_their_records(path):
    run = RunFolder(path)
    assert_same(run.read_masks(run.read_record()), read_safetensors(run.masks))


def without_one(masks):
    masks.pop(sorted(masks)[0])


def all_ones(masks):
    masks.update({name: torch.ones_like(mask) for name, mask in masks.items()})


@pytest.mark.parametrize("change", [without_one, all_ones, dict.clear])
def test_masks_that_are_not_those_of_the_record_are_refused(folder, change):
    masks = read_safetensors(folder.masks)
    change(masks)
    folder.save_tensors(folder.masks, masks)
    words = r"masks\.safetensors keeps \d+ of \d+ weights, and record\.json says \d+ of \d+; restore"
    refused(lambda: folder.read_masks(folder.read_record()), words)
    refused(lambda: write_report(folder), words)


# ---- recipes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", ["0it", "0.0ep", " 0 turnover "])
def test_mask_updates_have_a_distance(every):
    refused(lambda: from_values("a", {"prune.every": every}), r"prune\.every must be longer than 0, such as '1ep'")


@pytest.mark.parametrize("every", ["1it", "0.2ep", "0.5turnover"])
def test_short_distances_are_read(every):
    assert from_values("a", {"prune.every": every, "prune.begin": "0ep"}).prune.every == every


# ---- pruner states ---------------------------------------------------------------------------------------------------


def made(method="magnitude", schedule=SCHEDULE, **choices):
    model = conv_net()
    return model, sp.Pruner(model, method, schedule, **choices)


def saved(steps, method="magnitude", schedule=SCHEDULE, **choices):
    model, pruner = made(method, schedule, **choices)
    optimizer = sgd(model)
    pruner.attach(optimizer)
    train(model, optimizer, steps)
    return copy.deepcopy(pruner.state_dict())


HALF = sp.Cubic(to=0.5, begin=0, end=8, every=2)
HONEST = {
    "before the first update": ((1,), {}),
    "between updates": ((5,), {}),
    "finished, and training went on": ((12,), {}),
    "from a random start": ((5,), {"start": "random"}),
    "channels": ((5, "magnitude", HALF), {"pattern": "channel"}),
    "channels before the first forward": ((0, "magnitude", HALF), {"pattern": "channel"}),
    "a method that acts in every step": ((5, "grad-r"), {}),
    "such a method, finished": ((9, "stds"), {}),
}


@pytest.mark.parametrize("name", HONEST)
def test_honest_states_are_taken_up(name):
    (steps, *how), choices = HONEST[name]
    state = saved(steps, *how, **choices)
    pruner = made(*how, **choices)[1]
    pruner.load_state_dict(state)
    assert_same(pruner.state_dict(), state)


def test_a_state_saved_after_finish_is_taken_up():
    model, pruner = made()
    optimizer = sgd(model)
    pruner.attach(optimizer)
    train(model, optimizer, 9)
    pruner.finish()
    again = made()[1]
    again.load_state_dict(pruner.state_dict())
    assert_same(dict(again.masks), dict(pruner.masks))


def test_the_state_of_a_held_network_is_taken_up():
    model = conv_net()
    masks = sp.prune(model, "magnitude", 0.5)
    state = sp.hold(model, masks).state_dict()
    sp.hold(model, masks).load_state_dict(state)


def load(state, method="magnitude", schedule=SCHEDULE, **choices):
    pruner = made(method, schedule, **choices)[1]
    before = dict(pruner.masks)
    try:
        pruner.load_state_dict(state)
    except InvalidValue:
        assert_same(dict(pruner.masks), before)
        raise


@pytest.mark.parametrize("change", ["step past the end", "a round less", "a round more", "no rounds"])
def test_rounds_that_are_not_those_of_the_schedule_are_refused(change):
    state = saved(5)
    if change == "step past the end":
        state["step"] = 1000
    elif change == "a round more":
        state["step"] = 3
    else:
        state["rounds"] = state["rounds"][1:] if change == "a round less" else []
    refused(lambda: load(state), "contradicts itself: at step .* mask updates and it has .*strict=False")


def flipped(bits):
    return pack(torch.ones(8 * len(bits), dtype=torch.bool))


@pytest.mark.parametrize("layers", [True, False])
def test_masks_that_are_not_those_of_the_last_round_are_refused(layers):
    state = saved(5)
    state["masks"]["4.weight"] = flipped(state["masks"]["4.weight"])
    if not layers:  # states of 0.1 have none
        state["rounds"][-1].pop("layers")
    words = r"its mask of '4\.weight' keeps 216" if layers else r"its masks keep \d+, and its last round, of step 4"
    refused(lambda: load(state), words)


def test_channels_that_are_not_those_of_the_last_round_are_refused():
    state = saved(5, "magnitude", HALF, pattern="channel")
    alive = state["space"]["alive"]
    alive.update({name: torch.ones_like(mask) for name, mask in alive.items()})
    refused(lambda: load(state, "magnitude", HALF, pattern="channel"), "contradicts itself: its mask of")


def test_a_state_that_took_up_one_of_another_schedule_keeps_its_own_rounds_apart():
    later = sp.Cubic(to=0.95, begin=0, end=16, every=3)
    model, pruner = made(schedule=later)
    optimizer = sgd(model)
    pruner.attach(optimizer)
    pruner.load_state_dict(saved(7), strict=False)
    train(model, optimizer, 4, first=8)
    state = copy.deepcopy(pruner.state_dict())
    assert [entry["step"] for entry in state["rounds"]] == [2, 4, 6, 9]
    again = made(schedule=later)[1]
    again.load_state_dict(state)
    assert_same(again.state_dict(), state)
    state["rounds"].pop()
    refused(lambda: load(state, schedule=later), "has no round of the mask update at step 9")


def test_a_version_that_is_something_else_is_refused_in_one_short_line():
    refused(lambda: load({**saved(0), "version": {"method": "x" * 1000}}), "has version {'method': 'xx.*reads 1")


# ---- bytes -----------------------------------------------------------------------------------------------------------


def test_a_file_with_facts_is_the_same_bytes_each_time(tmp_path):
    tensors = {"b": torch.arange(3.0), "é": torch.ones(2, 2, dtype=torch.bool)}
    facts = {f"fact {i}": "ü" * i for i in range(12)}
    contents = {as_safetensors(tensors, dict(order)) for order in (facts.items(), reversed(facts.items()))}
    contents |= {as_safetensors(tensors, facts) for _ in range(4)}
    assert len(contents) == 1
    path = tmp_path / "a.safetensors"
    path.write_bytes(contents.pop())
    assert_same(read_safetensors(path), tensors)
    from safetensors import safe_open

    with safe_open(str(path), "pt") as file:
        assert file.metadata() == facts
