"""Values that are not numbers are named with their layer and the step or batch, where something is decided by them."""

import pytest
import torch
from spikingjelly.activation_based import functional, layer

import spikeprune as sp
from nets import batch, conv_net, loss_of, sgd, train
from spikeprune.core.errors import InvalidValue

NAN = float("nan")


def spoil(model, name="4.weight"):
    with torch.no_grad():
        model.get_parameter(name).flatten()[3] = NAN


@pytest.mark.parametrize(
    "settings", [{}, {"allocate": "erk"}, {"pattern": "2:4"}, {"budget": "synops"}, {"allocate": "lamp"}], ids=str
)
def test_a_mask_update_names_the_layer_and_the_step_and_changes_nothing(settings):
    model = conv_net()
    optimizer = sgd(model)
    schedule = sp.OneShot(0.5, every=3) if "pattern" in settings else sp.Cubic(to=0.9, begin=0, end=6, every=3)
    pruner = sp.Pruner(model, "magnitude", schedule, **settings).attach(optimizer)
    train(model, optimizer, 2)
    before = {name: mask.clone() for name, mask in pruner.masks.items()}
    optimizer.zero_grad()
    loss_of(model, *batch(3)).backward()
    functional.reset_net(model)
    spoil(model)
    wanted = r"magnitude score of '4\.weight' is not a number \(nan\) at the mask update of step 3"
    with pytest.raises(InvalidValue, match=wanted) as caught:
        optimizer.step()
    assert 20 <= len(str(caught.value)) <= 300
    assert all(torch.equal(mask, before[name]) for name, mask in pruner.masks.items())


def test_gradients_that_are_not_numbers_are_named():
    model = conv_net()
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    sp.Pruner(model, "gradient", sp.Cubic(to=0.9, begin=0, end=6, every=1)).attach(optimizer)
    handle = model[8].weight.register_hook(lambda grad: grad * NAN)
    with pytest.raises(InvalidValue, match=r"gradient score of '8\.weight' .* at the mask update of step 1"):
        train(model, optimizer, 1)
    handle.remove()


def test_count_names_the_parameter():
    model = conv_net()
    spoil(model, "0.weight")
    with pytest.raises(InvalidValue, match=r"'0\.weight' holds nan"):
        sp.count(model, [batch(1)[0]])


def test_count_names_the_layer_and_the_batch():
    model = conv_net()
    bad = batch(2)[0]
    bad[1, 2] = NAN
    with pytest.raises(InvalidValue, match=r"input of layer '0' holds nan .* in batch 2"):
        sp.count(model, [batch(1)[0], bad])


class Divides(torch.nn.Module):
    """0 / 0 where its input is silent."""

    def forward(self, x):
        return x / x.amax((-1, -2), keepdim=True)


def test_count_names_the_first_layer_behind_what_makes_nan():
    model = conv_net()
    model.insert(3, Divides())
    assert isinstance(model[5], layer.Conv2d)
    with pytest.raises(InvalidValue, match=r"input of layer '5' holds nan .* in batch 1"):
        sp.count(model, [torch.zeros(3, 2, 2, 8, 8)])
