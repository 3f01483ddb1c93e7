"""Each public name has an example in its docstring, and it does what it shows.

Every example finds `sp`, `torch`, a trained toy `model`, its `optimizer`, an untrained model of that shape, `fresh`,
and `data`, two batches (input [T, N, 2, 8, 8], target).
"""

import doctest
import importlib
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import spikeprune as sp
from nets import batch, conv_net, sgd, train
from spikeprune.methods import registry

PLACES = sp._PUBLIC | {cls.__name__: f"{cls.__module__.removeprefix('spikeprune.')}" for cls in registry.classes()}


def resolved(name):
    """The object itself: some names are packages too, which answer calls."""
    place, _, attribute = PLACES[name].partition(":")
    return getattr(importlib.import_module(f"spikeprune.{place}"), attribute or name)


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    model = conv_net()
    train(model, sgd(model), 12)
    for norm in (model[1], model[5]):
        norm.weight.data.mul_(3)  # so that every layer fires
    return model.state_dict()


@pytest.mark.parametrize("name", sorted(PLACES))
def test_example(name, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = conv_net()
    model.load_state_dict(trained)
    known = {
        "sp": sp,
        "torch": torch,
        "model": model,
        "fresh": conv_net(),
        "optimizer": sgd(model),
        "data": [batch(1), batch(2)],
        "loss": lambda output, target: F.cross_entropy(output.mean(0), target),
        "train": lambda steps: train(model, known["optimizer"], steps),
    }
    text = resolved(name).__doc__
    examples = doctest.DocTestParser().get_doctest(text, known, name, None, 0)
    assert examples.examples, f"sp.{name} has no example in its docstring"
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    said = []
    runner.run(examples, out=said.append)
    assert runner.failures == 0, "".join(said)


def test_the_reference_page_has_every_public_name():
    page = (Path(__file__).parents[2] / "docs/reference/python.md").read_text()
    shown = set()
    for identifier in re.findall(r"^::: (\S+)$", page, re.MULTILINE):
        module, _, attribute = identifier.rpartition(".")
        shown.add(id(getattr(importlib.import_module(module), attribute)))
    assert [name for name in sp._PUBLIC if id(resolved(name)) not in shown] == []
