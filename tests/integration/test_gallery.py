"""A short form of tests/gallery/run.py: an idiom of each kind through the doors that take milliseconds."""

import pytest

from gallery.nets import ENTRIES
from gallery.run import DOORS, cell, table

pytest.importorskip("norse")

SHORT = [
    "weight_norm", "local membrane", "time last", "norm per step", "recurrent layer", "straight through", "time folded",
    "direct coding", "ms-resnet", "parallel neuron", "einsum", "u-net", "attention", "snntorch recurrent",
    "norse recurrent", "two frameworks",
]  # fmt: skip


def test_the_gallery_holds_at_least_forty_networks():
    assert len(ENTRIES) >= 40


@pytest.mark.parametrize("name", SHORT)
def test_networks_are_pruned_and_counted_without_an_adapter(name):
    assert {door: cell(ENTRIES[name], door) for door in ("neuron", "resume", "count")} == {
        "neuron": "ok",
        "resume": "ok",
        "count": "ok",
    }


def test_what_cannot_be_pruned_is_refused_by_the_layers_names():
    assert "'a', 'b', 'c'" in cell(ENTRIES["standardised conv"], "neuron")


CUT = [
    "recurrent layer", "straight through", "masked conv", "spectral_norm", "depthwise", "parallel neuron", "delays",
    "einsum", "dense", "attention", "grouped conv1d", "snntorch recurrent", "snntorch conv lstm", "norse recurrent",
]  # fmt: skip


@pytest.mark.parametrize("name", CUT)
def test_channels_are_cut_around_what_cannot_be_followed(name):
    assert cell(ENTRIES[name], "channels") == "ok"


def test_a_width_that_the_forward_states_is_told():
    said = cell(ENTRIES["repeated image"], "channels")
    assert said.startswith("nothing can be cut: the channels of 'b'")
    assert "write shapes in the forward from x.shape" in said


def test_the_table_gives_the_words_of_every_refusal_once():
    row = dict.fromkeys(DOORS, "ok") | {"NIR": "no | way", "ONNX": "no way"}
    page = table({"vgg": row, "psn": row})
    assert page.count(". no way") == 1
    assert "| vgg |" in page
    assert "NIR 0, ONNX 0" in page
