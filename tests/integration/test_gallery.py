"""A short form of tests/gallery/run.py: an idiom of each kind through the doors that take milliseconds."""

import pytest

from gallery.nets import ENTRIES
from gallery.run import DOORS, cell, table

pytest.importorskip("norse")

SHORT = [
    "local membrane", "time last", "norm per step", "recurrent layer", "straight through", "time folded",
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


@pytest.mark.parametrize("name", ["weight_norm", "standardised conv"])
def test_what_cannot_be_pruned_is_refused_by_the_layers_names(name):
    assert "'a', 'b', 'c'" in cell(ENTRIES[name], "neuron")


def test_the_table_gives_the_words_of_every_refusal_once():
    row = dict.fromkeys(DOORS, "ok") | {"NIR": "no | way", "ONNX": "no way"}
    page = table({"vgg": row, "psn": row})
    assert page.count(". no way") == 1
    assert "| vgg |" in page
    assert "NIR 0, ONNX 0" in page
