"""Copies made while statistics are recorded, parameters without values, and memory layouts that are the user's."""

import copy
import io

import pytest
import torch
from spikingjelly.activation_based import functional
from torch import nn

import spikeprune as sp
from nets import batch, conv_net, loss_of, sgd, train
from spikeprune.core.errors import InvalidValue

UPDATES = sp.Cubic(to=0.9, begin=0, end=8, every=4)


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=False)


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("method", ["criticality", "gradient"])
@pytest.mark.parametrize("make", [copy.deepcopy, saved])
@pytest.mark.parametrize("budget", ["weights", "synops"])
def test_a_copy_in_the_recording_window_is_an_ordinary_model(make, method, budget):
    model, undisturbed = conv_net(), conv_net()
    optimizer, other = sgd(model), sgd(undisturbed)
    pruner = sp.Pruner(model, method, UPDATES, budget=budget).attach(optimizer)
    twin = sp.Pruner(undisturbed, method, UPDATES, budget=budget).attach(other)
    train(model, optimizer, 3)
    if method == "criticality" or budget == "synops":
        assert hooks(model) > 0  # step 4 is a mask update: its forward is recorded
    made = make(model)
    x, y = batch(50)
    loss_of(made, x, y)  # recorded by nobody
    functional.reset_net(made)
    assert hooks(made) == 0
    train(model, optimizer, 6, first=4)
    train(undisturbed, other, 9)
    assert pruner.rounds == twin.rounds
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), undisturbed.parameters(), strict=True))


def test_lazy_and_meta_parameters_are_refused_by_name():
    lazy = nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.Linear(8, 3))
    with torch.device("meta"):
        meta = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    for model, message in ((lazy, "is a lazy parameter"), (meta, "is on the meta device")):
        for act in (lambda m: sp.Pruner(m, "magnitude", UPDATES), lambda m: sp.prune(m, "magnitude", 0.5)):
            with pytest.raises(InvalidValue, match=rf"'0\.weight' {message}") as caught:
                act(model)
            assert 20 <= len(str(caught.value)) <= 300
    lazy(torch.rand(2, 4))
    assert sp.prune(lazy, "magnitude", 0.5).alive == 28  # of 8 * 4 + 3 * 8


def channels_last(model):
    for layer in (model[0], model[4]):
        layer.to(memory_format=torch.channels_last)
    assert not model[4].weight.is_contiguous()
    return model


@pytest.mark.parametrize("method", ["magnitude", "criticality", "gradient", "random"])
def test_channels_last_gives_the_masks_of_the_ordinary_layout(method):
    one, two = conv_net(), channels_last(conv_net())
    a, b = sgd(one), sgd(two)
    first, second = (sp.Pruner(m, method, UPDATES).attach(o) for m, o in ((one, a), (two, b)))
    train(one, a, 9)
    train(two, b, 9)
    assert not two[4].weight.is_contiguous()
    assert first.alive == second.alive == 76
    same = sum(int((first.masks[n] == second.masks[n]).sum()) for n in first.masks)
    assert same >= 0.98 * 768  # convolutions add in another order


def test_a_zoo_network_in_channels_last_is_pruned():
    model = sp.model("digits-conv", classes=10, T=2, size=8).to(memory_format=torch.channels_last)
    masks = sp.prune(model, "magnitude", 0.9)
    assert sum(int((p != 0).sum()) for n, p in model.named_parameters() if n in masks) == masks.alive


def test_a_transposed_weight_is_pruned():
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 5))
    model[2].weight = nn.Parameter(torch.randn(8, 5).t())
    masks = sp.prune(model, "magnitude", 0.9)
    assert masks.alive == 8
    assert int((model[2].weight != 0).sum()) == int(masks["2.weight"].sum())
    assert model[2].weight.stride() == (1, 5)


def test_tied_transposed_weights_are_one_weight():
    """Two parameters over one memory: a mask of each would cut what the other keeps."""
    model = nn.Sequential(nn.Linear(5, 8, bias=False), nn.Linear(8, 5, bias=False))
    model[1].weight = nn.Parameter(model[0].weight.data.t())
    masks = sp.prune(model, "magnitude", 0.75)
    assert set(masks) == {"0.weight"}
    assert int((model[0].weight != 0).sum()) == int((model[1].weight != 0).sum()) == masks.alive == 10
