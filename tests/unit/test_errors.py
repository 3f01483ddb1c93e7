"""Wrong input: a clear error when the object is made, of 20 to 300 characters, a ValueError or LookupError."""

import pytest
import torch
from torch import nn

import spikeprune as sp
from nets import batch, conv_net, mlp, sgd, train
from spikeprune.core.errors import InvalidValue, MissingEvidence, UnknownName, UserError, unknown
from spikeprune.data.formats.files import MissingFile

SCHEDULE = sp.OneShot(0.5)


def frozen():
    model = mlp()
    model.requires_grad_(False)
    return model


MADE_WRONG = {
    "sparsity in percent": (lambda: sp.Cubic(to=95, end=10, every=1), ValueError, "for 95 % pass 0.95"),
    "one-shot in percent": (lambda: sp.prune(mlp(), "magnitude", sparsity=95), ValueError, "for 95 % pass 0.95"),
    "sparsity of one": (lambda: sp.OneShot(1.0), ValueError, r"must be in \[0, 1\)"),
    "regrow in percent": (lambda: sp.Criticality(regrow=20), ValueError, "regrow must be in"),
    "unit": (lambda: sp.Criticality(unit="weight"), ValueError, "unit must be one of 'neuron', 'synapse'"),
    "curve": (lambda: sp.Criticality(curve="slope"), ValueError, "curve must be one of"),
    "surrogate": (lambda: sp.Criticality(surrogate="attan"), LookupError, "did you mean 'atan'"),
    "space": (lambda: sp.Criticality(space="median"), ValueError, "space must be one of"),
    "normalize": (lambda: sp.Criticality(normalize="net"), ValueError, "normalize must be one of None, 'layer'"),
    "pick": (lambda: sp.Criticality(pick="random"), ValueError, "pick must be one of"),
    "candidates": (lambda: sp.Criticality(candidates="old"), ValueError, "candidates must be one of"),
    "measure": (lambda: sp.Criticality(measure="never"), ValueError, "measure must be one of"),
    "rule": (lambda: sp.Criticality(rule="theirs"), ValueError, "rule must be one of"),
    "batches": (lambda: sp.Criticality(batches=0), ValueError, "batches must be 1 or more"),
    "method": (lambda: sp.Pruner(mlp(), "magnitud", SCHEDULE), LookupError, "did you mean 'magnitude'"),
    "no method": (lambda: sp.Pruner(mlp(), 0.9, SCHEDULE), ValueError, "method must be a method object or a name"),
    "no schedule": (lambda: sp.Pruner(mlp(), "magnitude", 0.9), ValueError, "schedule must be a schedule"),
    "allocation": (
        lambda: sp.Pruner(mlp(), "magnitude", SCHEDULE, allocate="globl"),
        LookupError,
        "did you mean 'global'",
    ),
    "pattern": (
        lambda: sp.Pruner(mlp(), "magnitude", SCHEDULE, pattern="wieght"),
        LookupError,
        "did you mean 'weight'",
    ),
    "n of m": (lambda: sp.Pruner(mlp(), "magnitude", SCHEDULE, pattern="4:2"), ValueError, "must keep between 1 and 1"),
    "beyond the pattern": (
        lambda: sp.Pruner(conv_net(), "magnitude", sp.OneShot(0.9), pattern="2:4"),
        ValueError,
        "allows sparsity 0.5 at most",
    ),
    "budget": (lambda: sp.Pruner(mlp(), "magnitude", SCHEDULE, budget="mac"), LookupError, "did you mean 'macs'"),
    "budget and quotas": (
        lambda: sp.Pruner(mlp(), "magnitude", SCHEDULE, budget="macs", allocate="erk"),
        ValueError,
        "use allocate='global'",
    ),
    "start": (lambda: sp.Pruner(mlp(), "magnitude", SCHEDULE, start="sparse"), ValueError, "start must be one of"),
    "floor": (lambda: sp.Pruner(mlp(), "magnitude", SCHEDULE, floor=-1), ValueError, "floor must be 0 or more"),
    "no prunable layer": (lambda: sp.Pruner(nn.ReLU(), "magnitude", SCHEDULE), ValueError, "no prunable layer"),
    "all frozen": (lambda: sp.Pruner(frozen(), "magnitude", SCHEDULE), ValueError, "requires a gradient"),
    "no spiking neuron": (lambda: sp.Pruner(mlp(), "criticality", SCHEDULE), ValueError, "has no spiking neuron"),
    "include": (
        lambda: sp.Pruner(mlp(), "magnitude", SCHEDULE, include=["conv*"]),
        ValueError,
        r"0 of 2 layers matched include='conv\*'",
    ),
    "exclude": (lambda: sp.Pruner(mlp(), "magnitude", SCHEDULE, exclude="fc"), ValueError, "matched exclude='fc'"),
    "everything excluded": (
        lambda: sp.Pruner(mlp(), "magnitude", SCHEDULE, exclude="*"),
        ValueError,
        "leave none of 2",
    ),
    "no events": (lambda: sp.Pruner(mlp(), "magnitude", sp.Cubic(to=0.5)), ValueError, "needs begin, end and every"),
    "optimizer of another model": (
        lambda: sp.Pruner(mlp(), "magnitude", SCHEDULE).attach(sgd(mlp())),
        ValueError,
        r"does not hold '0\.weight' \(2 of 2",
    ),
}


@pytest.mark.parametrize("case", sorted(MADE_WRONG))
def test_refused_when_made(case):
    make, kind, text = MADE_WRONG[case]
    with pytest.raises(kind, match=text) as caught:
        make()
    assert isinstance(caught.value, UserError)
    assert 20 <= len(str(caught.value)) <= 300
    assert "\n" not in str(caught.value)


def test_the_model_was_not_called_before_an_event():
    model = conv_net()
    optimizer = sgd(model)
    sp.Pruner(model, sp.Criticality(measure="after"), SCHEDULE).attach(optimizer)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    with pytest.raises(MissingEvidence, match="the model was not called between two optimizer steps"):
        optimizer.step()


def test_gradients_are_missing():
    model = conv_net()
    optimizer = sgd(model)
    sp.Pruner(model, "gradient", SCHEDULE).attach(optimizer)
    with pytest.raises(MissingEvidence, match=r"loss\.backward"):
        optimizer.step()


def test_a_nan_in_the_weights_is_not_ranked():
    model = conv_net()
    optimizer = sgd(model)
    sp.Pruner(model, "magnitude", SCHEDULE).attach(optimizer)
    with torch.no_grad():
        model[0].weight[0] = float("nan")
    with pytest.raises(InvalidValue, match="check the loss"):
        train(model, optimizer, 1)


def test_a_budget_that_cannot_be_met():
    with pytest.raises(InvalidValue, match="cannot be met"):
        sp.prune(conv_net(), "magnitude", 0.99, budget="macs", include=["8"], data=[batch(1)[0]])


def test_unknown_names():
    error = unknown("dataset", "cifr10", ["cifar10", "digits"], "(see docs)")
    assert str(error) == "no dataset named 'cifr10'; did you mean 'cifar10'? (see docs)"
    assert isinstance(error, UnknownName)
    assert str(unknown("thing", "zzz", ["a", "b"])) == "no thing named 'zzz'; known: a, b"


@pytest.mark.parametrize("kind", [InvalidValue, UnknownName, MissingEvidence, MissingFile])
def test_a_long_name_in_a_message_loses_its_middle(kind):
    """A file names its tensors as it likes; `path` is of a length that happens."""
    path = "/data/" + "x" * 190
    assert str(kind(f"cannot read {path!r}; try another")) == f"cannot read {path!r}; try another"
    for name in ("x" * 5000, "x y " * 2000, "x" * 150 + " " + "y" * 190 + " " + "z" * 190):
        said = str(kind(f"the plan cuts {name!r} in dimension 0; build the model of the original size"))
        assert said.startswith("the plan cuts 'x"), said
        assert said.endswith("build the model of the original size"), said
        assert " ... " in said
        assert len(said) <= 400


def test_a_long_word_and_a_long_message_lose_their_middle():
    said = str(InvalidValue(f"no file {'a' * 200} or {'b' * 100}{'c' * 101} here"))
    assert said == f"no file {'a' * 200} or {'b' * 60} ... {'c' * 55} here"  # 200 letters stay, 201 become 120
    assert str(InvalidValue("word " * 80)) == "word " * 80  # 400 letters
    long = str(InvalidValue("begin " + "word " * 79 + "end"))  # 404 of them
    assert (len(long), long[:11], long[-9:]) == (400, "begin word ", " word end")
    assert " ... " in long


def test_three_letters_are_enough_for_an_offer():
    names = ["criticality", "random", "settings.floor"]
    assert "did you mean 'criticality'?" in str(unknown("method", "cri", names))
    assert "known: criticality, random, settings.floor" in str(unknown("method", "cr", names))
    assert "did you mean 'settings.floor'?" in str(unknown("key", "floor", names))
    assert "did you mean 'random'?" in str(unknown("method", "ramdon", names))
