"""A saved Pruner state on a network with another head: the rest is taken up, the head starts dense."""

import logging

import pytest
import torch
from spikingjelly.activation_based import layer

import spikeprune as sp
from nets import conv_net, sgd, train
from spikeprune.core.errors import InvalidValue

SCHEDULE = sp.Cubic(to=0.9, begin=0, end=8, every=2)


def headed(classes):
    model = conv_net()
    torch.manual_seed(3)
    model[8] = layer.Linear(96, classes, step_mode="m")
    return model


def saved(method="criticality", steps=4, schedule=SCHEDULE, **settings):
    model = conv_net()
    optimizer = sgd(model)
    pruner = sp.Pruner(model, method, schedule, **settings).attach(optimizer)
    train(model, optimizer, steps)
    return model, pruner, pruner.state_dict()


@pytest.mark.parametrize("steps", [0, 1, 3, 4])
@pytest.mark.parametrize("method", ["criticality", "magnitude"])
def test_the_masks_of_the_other_layers_are_taken_up_and_the_head_starts_dense(method, steps, caplog):
    _, old, state = saved(method, steps)
    model = headed(7)
    pruner = sp.Pruner(model, method, SCHEDULE)
    with pytest.raises(InvalidValue, match="another parameters"):
        pruner.load_state_dict(state)
    with caplog.at_level(logging.WARNING, "spikeprune"):
        pruner.load_state_dict(state, strict=False)
    assert "'8.weight': other shapes than in the saved pruner state, so it starts dense" in caplog.text
    assert torch.equal(pruner.masks["0.weight"], old.masks["0.weight"])
    assert torch.equal(pruner.masks["4.weight"], old.masks["4.weight"])
    assert bool(pruner.masks["8.weight"].all())
    assert not bool(model[4].weight[~pruner.masks["4.weight"]].any())


def test_training_goes_on_to_the_target_with_the_new_head():
    _, _, state = saved()
    model = headed(7)
    optimizer = sgd(model)
    pruner = sp.Pruner(model, "criticality", SCHEDULE).attach(optimizer)
    pruner.load_state_dict(state, strict=False)
    with torch.no_grad():
        model[8].weight[5:] = 0  # batches have five classes
    train(model, optimizer, 4, first=5)
    assert pruner.alive == 96  # 10 % of 72 + 216 + 96 * 7 = 960
    assert not bool(model[8].weight[~pruner.masks["8.weight"]].any())
    assert [entry.step for entry in pruner.rounds] == [2, 4, 6, 8]
    pruner.finish()


def test_a_layer_that_is_gone_is_left_out():
    _, old, state = saved("magnitude")
    pruner = sp.Pruner(conv_net(), "magnitude", SCHEDULE, exclude=["8"])
    pruner.load_state_dict(state, strict=False)
    assert sorted(pruner.masks) == ["0.weight", "4.weight"]
    assert torch.equal(pruner.masks["4.weight"], old.masks["4.weight"])


def test_a_state_of_another_network_altogether_is_refused():
    _, _, state = saved()
    other = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    pruner = sp.Pruner(other, "magnitude", SCHEDULE)
    with pytest.raises(InvalidValue, match="is of another network"):
        pruner.load_state_dict(state, strict=False)


def test_channels_do_not_fit_another_head():
    halves = sp.Cubic(to=0.5, begin=0, end=8, every=2)
    model, _, state = saved("criticality", 2, halves, pattern="channel")
    state["settings"]["parameters"]["4.weight"] = [9, 4, 3, 3]
    pruner = sp.Pruner(model, "criticality", halves, pattern="channel")
    with pytest.raises(InvalidValue, match="holds more than masks of weights"):
        pruner.load_state_dict(state, strict=False)
