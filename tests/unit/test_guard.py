"""Guards of the Pruner: replaced parameters, wrapped optimizers, two Pruners, plans that were not carried out."""

import copy
import logging

import pytest
import torch
from torch import nn

import spikeprune as sp
from nets import conv_net, sgd, train
from spikeprune.core.errors import InvalidValue


def attached(model, optimizer, steps=4):
    return sp.Pruner(model, "magnitude", sp.Cubic(to=0.9, begin=0, end=steps, every=2)).attach(optimizer)


def assign(model):
    model[4].weight = nn.Parameter(torch.randn_like(model[4].weight))


def load(model):
    model.load_state_dict(conv_net(seed=1).state_dict(), assign=True)


def head(model):
    model[8] = copy.deepcopy(model[8])


@pytest.mark.parametrize("replace", [assign, load, head])
def test_a_replaced_parameter_is_seen_at_the_next_step_at_attach_and_at_finish(replace):
    model = conv_net()
    optimizer = sgd(model)
    pruner = attached(model, optimizer)
    train(model, optimizer, 4)
    replace(model)
    for act in (lambda: train(model, optimizer, 1, first=5), lambda: pruner.attach(sgd(model)), pruner.finish):
        with pytest.raises(InvalidValue, match="no longer the parameter that the Pruner holds") as caught:
            act()
        assert 20 <= len(str(caught.value)) <= 300


def test_infinite_gradients_of_dead_weights_leave_everything_finite():
    model = conv_net()
    optimizer = sgd(model)
    pruner = attached(model, optimizer)
    train(model, optimizer, 4)
    dead = ~pruner.masks["4.weight"]
    model[4].weight.register_hook(lambda grad: grad.masked_fill(dead, float("inf")))
    train(model, optimizer, 1, first=5)
    weight = model[4].weight
    assert bool(weight.isfinite().all())
    assert not weight[dead].any()
    assert not optimizer.state[weight]["momentum_buffer"][dead].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_holding_equals_the_product_with_the_mask_bit_for_bit(dtype):
    model = nn.Sequential(nn.Linear(40, 40, bias=False).to(dtype))
    pruner = sp.Pruner(model, "magnitude", sp.OneShot(0.5))
    pruner.step()
    gradient = torch.randn(40, 40).to(dtype)
    model[0].weight.grad = gradient.clone()
    pruner.mask_grads()
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    product = gradient * pruner.masks["0.weight"].to(dtype)
    assert torch.equal(model[0].weight.grad.view(integer), product.view(integer))


class Wrapped:
    """An optimizer as accelerate wraps it: no hooks of its own."""

    def __init__(self, optimizer):
        self.optimizer = optimizer
        self.param_groups = [] if optimizer is None else optimizer.param_groups


def test_a_wrapped_optimizer_is_attached_inside():
    model = conv_net()
    optimizer = sgd(model)
    pruner = attached(model, Wrapped(optimizer))
    train(model, optimizer, 4)
    assert pruner.alive == 76  # of 768: a tenth, rounded down
    with pytest.raises(InvalidValue, match="takes no step hooks"):
        pruner.attach(Wrapped(None))


def test_two_pruners_of_one_weight_on_one_optimizer_are_refused():
    model = conv_net()
    optimizer = sgd(model)
    first = attached(model, optimizer)
    with pytest.raises(InvalidValue, match="another Pruner is attached"):
        attached(model, optimizer)
    first.attach(optimizer)  # itself is no other
    first.finish()
    attached(model, optimizer)


def test_a_plan_that_was_not_carried_out_is_told(caplog):
    model = conv_net()
    optimizer = sgd(model)
    pruner = attached(model, optimizer, steps=10)
    train(model, optimizer, 5)
    assert "3 of 5 mask updates to come, from step 6 to 10 (asked: sparsity 0.9)" in repr(pruner)
    with caplog.at_level(logging.WARNING, "spikeprune"):
        pruner.finish()
    assert "at step 5, 3 of 5 mask updates to come" in caplog.text


def test_a_plan_that_was_carried_out_is_not_mentioned(caplog):
    model = conv_net()
    optimizer = sgd(model)
    pruner = attached(model, optimizer)
    train(model, optimizer, 4)
    pruner.finish()
    assert "to come" not in repr(pruner) + caplog.text
