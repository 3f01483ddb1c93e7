"""A round is a typed object that still behaves as the dict that it was."""

import copy
import dataclasses
import io
import json
import pickle

import pytest
import torch

import spikeprune as sp
from nets import conv_net, sgd, train
from spikeprune.record.base import Damaged, Impossible, loaded
from spikeprune.record.round import LayerRound, Round

AS_DICT = {
    "step": 40, "target": 0.5, "cut": True, "kept": 60, "regrown": 12, "rescued": 3, "survived": None,
    "layers": {"conv.weight": {"kept": 60, "regrown": 12}},
}  # fmt: skip


def one():
    layers = {"conv.weight": LayerRound(kept=60, regrown=12)}
    return Round(step=40, target=0.5, kept=60, regrown=12, rescued=3, survived=None, layers=layers)


def test_the_authors_rule_says_what_it_kept_beyond_the_target():
    method = sp.Criticality(regrow=sp.Constant(0.2), rule="authors")
    for chosen, beyond in ((method, True), (sp.Criticality(regrow=sp.Constant(0.2)), False)):
        model = conv_net()
        optimizer = sgd(model)
        pruner = sp.Pruner(model, chosen, sp.Cubic(to=0.8, end=4, every=2)).attach(optimizer)
        train(model, optimizer, 4)
        asked = [update.kept for update in pruner.preview()]
        for round_, kept in zip(pruner.rounds, asked, strict=True):
            assert ("beyond" in round_) == beyond
            assert round_.kept - kept == (round_.beyond or 0)
        # All weights of a filter tie, so a whole number of filters comes back.
        assert any(round_.beyond for round_ in pruner.rounds) == beyond


def test_it_reads_and_compares_as_the_dict_that_it_was():
    found = one()
    assert found["kept"] == found.kept == 60
    assert found["layers"]["conv.weight"]["regrown"] == 12
    assert found == AS_DICT
    assert dict(found) == AS_DICT
    assert list(found) == list(AS_DICT)
    assert json.loads(json.dumps([found])) == [AS_DICT]
    assert {**found, "step": 7}["step"] == 7
    assert found == one()
    assert found != dataclasses.replace(one(), kept=61)


def test_what_it_wrote_it_reads():
    assert Round.read(json.loads(one().as_json())) == one()
    assert isinstance(Round.read(AS_DICT).layers["conv.weight"], LayerRound)


@pytest.mark.parametrize("what", ["kept", "regrown"])
def test_layers_that_do_not_add_up_are_refused(what):
    layers = {"conv.weight": {"kept": 50, "regrown": 12}, "fc.weight": {"kept": 10, "regrown": 0}}
    assert Round.read({**AS_DICT, "layers": layers}).kept == 60
    layers["fc.weight"][what] += 1
    with pytest.raises(Impossible, match=rf"{what} is \d+, but its layers add up to"):
        Round.read({**AS_DICT, "layers": layers})


def test_a_round_without_layers_writes_none():
    without = {key: value for key, value in AS_DICT.items() if key != "layers"}
    assert Round.read(without).as_dict() == without
    assert Round.read(without) == without


def test_its_plain_form_loads_weights_only():
    buffer = io.BytesIO()
    torch.save([one().as_dict()], buffer)
    buffer.seek(0)
    assert torch.load(buffer, weights_only=True) == [AS_DICT]


def test_copies_are_rounds():
    for found in (copy.deepcopy(one()), copy.copy(one()), pickle.loads(pickle.dumps(one()))):
        assert isinstance(found, Round)
        assert found == one()
        assert found.kept == 60


def test_it_stays_as_it_is():
    found = one()
    with pytest.raises(TypeError, match="stays as it is"):
        found["kept"] = 3
    with pytest.raises(TypeError, match="stays as it is"):
        found.update(kept=3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.kept = 3
    later = dataclasses.replace(found, survived=5)
    assert (later["survived"], later.survived, found["survived"]) == (5, 5, None)


def test_unknown_keys_survive():
    found = Round.read({**AS_DICT, "loss": [1, {"a": None}]})
    assert found["loss"] == [1, {"a": None}]
    assert found.as_dict()["loss"] == [1, {"a": None}]
    assert dataclasses.replace(found, survived=1).as_dict()["loss"] == [1, {"a": None}]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"kept": -1}, "kept is -1, must be 0 or more"),
        ({"kept": 1.5}, "kept is 1.5, must be a whole number"),
        ({"kept": True}, "kept is True, must be a whole number"),
        ({"step": 2**63}, "step is 9223372036854775808, must be a whole number"),
        ({"target": float("nan")}, "target is nan, must be a finite number"),
        ({"target": 1.5}, r"target is 1.5, must be in \[0, 1\]"),
        ({"survived": "3"}, "survived is '3', must be a whole number"),
        ({"cut": 1}, "cut is 1, must be true or false"),
        ({"layers": [1]}, r"layers is \[1\], must be an object"),
        ({"layers": {"a": {"kept": 1}}}, "layers.a.regrown is missing"),
    ],
)
def test_impossible_values_are_refused_by_file_and_key(tmp_path, change, says):
    path = tmp_path / "round.json"
    path.write_text(json.dumps({**AS_DICT, **change}))
    with pytest.raises(Damaged, match=says) as caught:
        Round.of_file(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_ends_of_what_a_number_may_be():
    zeros = {**AS_DICT, "step": 0, "target": 0, "kept": 0, "regrown": 0, "rescued": 0, "survived": 0, "layers": {}}
    assert Round.read(zeros).step == 0
    assert Round.read({**AS_DICT, "target": 1, "step": 2**63 - 1}).step == 2**63 - 1


def test_a_file_that_is_no_json_or_not_there_is_named(tmp_path):
    path = tmp_path / "round.json"
    with pytest.raises(Damaged, match="cannot read"):
        loaded(path, Round.read)
    path.write_text("{")
    with pytest.raises(Damaged, match="is damaged"):
        loaded(path, Round.read)
