"""Which axis of the calibration data counts images: told, or read from targets, neurons and outputs."""

import pytest
import torch
from torch import nn

import spikeprune as sp
from nets import conv_net
from spikeprune.core.errors import InvalidValue
from spikeprune.model.adapter import find_adapter
from spikeprune.model.discover import Discovered
from spikeprune.squeeze.batches import first_images


class Fire(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u):
        ctx.save_for_backward(u)
        return (u > 0).float()

    @staticmethod
    def backward(ctx, grad):
        return grad * (ctx.saved_tensors[0].abs() < 0.5).float()


class Loop(nn.Module):
    """Time first or samples first, with a spike function of its own."""

    def __init__(self, axis, summed=True):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.axis, self.summed = nn.Linear(7, 9), nn.Linear(9, 5), axis, summed

    def forward(self, x):
        v, out = 0, []
        for step in x.unbind(self.axis):
            v = 0.5 * v + self.a(step)
            s = Fire.apply(v - 0.2)
            v = v - s
            out.append(self.b(s))
        return sum(out) if self.summed else torch.stack(out, self.axis)


def taken(model, x, images, **told):
    return first_images([x], images, model, find_adapter(model) or Discovered(), **told)


@pytest.mark.parametrize("summed", [True, False])
def test_time_is_not_taken_for_images(summed):
    """T = 4 and N = 6: without targets the first axis was taken for the images."""
    batches = taken(Loop(0, summed), torch.rand(4, 6, 7), 3)
    assert (batches.images, batches.inputs[0].shape) == (3, (4, 3, 7))
    batches = taken(Loop(1, summed), torch.rand(6, 4, 7), 3)
    assert (batches.images, batches.inputs[0].shape) == (3, (3, 4, 7))
    batches = taken(conv_net(), torch.rand(3, 4, 2, 8, 8), 2)
    assert (batches.images, batches.inputs[0].shape) == (2, (3, 2, 2, 8, 8))


class Fixed(Loop):
    def forward(self, x):
        if x.shape != (4, 4, 7):
            raise ValueError("only 4 x 4")
        return super().forward(x)


class Static(Loop):
    """Takes [N, 7] and repeats it, as snnTorch's tutorials do."""

    def forward(self, x):
        return super().forward(x.expand(3, *x.shape))


def test_equal_axes_are_told_or_asked_for():
    x = torch.rand(4, 4, 7)
    assert taken(Loop(0), x, 4).images == 4  # nothing has to be cut
    assert taken(Loop(0), x, 3).inputs[0].shape == (4, 3, 7)  # a shorter axis 0 is a step less, not a sample less
    assert taken(Loop(1), x, 3).inputs[0].shape == (3, 4, 7)
    with pytest.raises(InvalidValue, match=r"the batch size cannot be told: the input has \[4, 4\]"):
        taken(Fixed(0), x, 3)
    assert taken(Loop(0), x, 3, time="first").inputs[0].shape == (4, 3, 7)
    assert taken(Loop(1), x, 3, time="batch-first").inputs[0].shape == (3, 4, 7)


@pytest.mark.parametrize("targets", [True, False])
def test_as_many_images_as_features_are_no_riddle(targets):
    x = torch.rand(7, 7)
    net = Static(0)
    data = [(x, torch.zeros(7, dtype=torch.int64))] if targets else [x]
    batches = first_images(data, 5, net, find_adapter(net) or Discovered())
    assert batches.inputs[0].equal(x[:5])


def test_squeeze_is_told_as_count_is():
    net, x = Loop(0), torch.rand(4, 6, 7)
    assert sp.squeeze(net, [x], 0.5, images=3, rounds=1, time="first").images == 3
    assert sp.count(net, [x], time="first").samples == sp.count(net, [x]).samples == 6
    with pytest.raises(InvalidValue, match="time must be 'first', 'batch-first' or 'last', got 'outside'"):
        sp.squeeze(net, [x], 0.5, time="outside")
