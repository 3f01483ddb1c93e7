"""What a newcomer sees in the first hour: each test is the right text or number of a command that once misled."""

import logging

import pytest
import torch
from torch import nn

import spikeprune as sp
from spikeprune.cli import main as cli
from spikeprune.core.errors import InvalidValue, unknown
from spikeprune.core.schedule import _check_steps
from spikeprune.count import table


def counted() -> "sp.Counts":
    net = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(3, 2, bias=False))
    masks = {"0.weight": torch.eye(3, 4).bool()}
    return sp.count(net, [torch.ones(5, 4)], masks)


def test_counts_print_as_a_table():
    lines = str(counted()).splitlines()
    assert lines[0].split() == [
        "layer",
        "weights",
        "alive",
        "density",
        "MACs",
        "SynOps",
        "dense",
        "SynOps",
        "input",
        "rate",
    ]
    assert lines[1].split() == ["0", "12", "3", "0.2500", "3", "3", "12", "1.0000"]
    assert lines[3].split() == ["total", "18", "9", "0.5000", "9", "9", "18"]
    assert "mean of 5" in lines[4]


def test_counts_are_a_table_in_notebooks_too():
    page = counted()._repr_html_()
    assert page.startswith("<table>")
    assert all(cell in page for cell in ("<td>0.2500</td>", "<th>SynOps</th>"))


def test_beside_the_energy_stands_what_a_chip_adds():
    # Layer 0 has 3 alive weights for 3 neurons, all inputs non-zero: 1 event a neuron and step, below 2.2.
    assert "layers below 2.2 (alive fan-in x input spike rate; constants of Loihi 1): 0 (1)" in str(counted())
    assert "so synapses dominate" in table.chip_note({"wide": 20.0})


def test_silent_and_saturated_layers_are_named():
    notes = table.activity_notes({"a": 0.0, "b": 0.2, "c": 0.999})
    assert notes[0].startswith("1 of 3 neuron layers never fire on this data: a.")
    assert notes[1].startswith("1 of 3 neuron layers fire at nearly every step: c (0.999).")
    assert table.activity_notes({"b": 0.2}) == []


@pytest.mark.parametrize(
    ("value", "said"),
    [("5ep", "pass 5 * len(loader)"), ("300it", "pass 300 "), ("soon", "one epoch is len(loader) steps"),
     (10.5, "got '10.5'"), (True, "got 'True'")],
)  # fmt: skip
def test_a_duration_in_the_library_is_refused_by_type(value, said):
    with pytest.raises(InvalidValue, match="optimizer steps as a whole number") as caught:
        _check_steps("end", value)  # Cubic calls it; its own annotations are checked first while tests run
    assert said in str(caught.value)
    assert 20 <= len(str(caught.value)) <= 300


def test_shrink_that_cuts_nothing_says_so(caplog):
    net = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    with caplog.at_level(logging.WARNING, "spikeprune"):
        _, plan = sp.shrink(net, {"0.weight": torch.eye(3, 4).bool()}, torch.ones(1, 4))
    assert plan.cuts == ()
    assert all(word in caplog.text for word in ("shrink cut nothing", "sp.compile", "pattern='channel'"))
    caplog.clear()
    with caplog.at_level(logging.WARNING, "spikeprune"):
        dead = {
            "0.weight": torch.tensor([[True] * 4, [False] * 4, [True] * 4]),
            "0.bias": torch.tensor([1, 0, 1]).bool(),
        }
        assert sp.shrink(net, dead, torch.ones(1, 4))[1].cuts
    assert caplog.text == ""


@pytest.mark.parametrize("word", ["version", "--version"])
def test_version_is_understood(word, capsys):
    assert cli.main([word]) == 0
    assert capsys.readouterr().out.startswith("spikeprune 0.")


def test_only_near_names_are_suggested(capsys):
    assert cli.main(["run", "digits", "--wandb", "x"]) == 2
    said = capsys.readouterr().err
    assert "no setting named 'wandb'" in said
    assert "did you mean" not in said
    assert "did you mean 'data.limit'" in str(unknown("setting", "limit", ["data.limit", "lr"]))
    assert "known: a, b" in str(unknown("colour", "zebra", ["a", "b"]))


def test_a_message_of_the_library_has_its_prefix_once(capsys):
    with cli._quiet(False):
        logging.getLogger("spikeprune").warning("spikeprune: 0 of %d", 7)
        logging.getLogger("spikeprune").warning("no compiler")
    assert capsys.readouterr().err == "spikeprune: 0 of 7\nspikeprune: no compiler\n"
