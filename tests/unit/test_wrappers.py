"""Masks, counts and cuts go by the module inside a wrapper, whatever the wrapper is."""

import pytest
import torch
from tests.nets import batch, conv_net
from torch import nn
from torch.optim.swa_utils import AveragedModel

import spikeprune as sp
from spikeprune.core.errors import InvalidValue
from spikeprune.model.wrappers import eager


class LightningModule(nn.Module):
    """Stands for Lightning's class, which is told by its name: the library does not import it."""


class Task(LightningModule):
    def __init__(self, *nets):
        super().__init__()
        self.loss = nn.CrossEntropyLoss()
        for i, net in enumerate(nets):
            self.add_module(f"net{i}", net)


class DTensor(nn.Parameter):
    """Stands for torch's sharded parameter, which needs a process group."""


WRAPPERS = {
    "compiled": lambda net: torch.compile(net, backend="eager"),
    "DataParallel": nn.DataParallel,
    "averaged": AveragedModel,
    "Lightning": Task,
    "compiled DataParallel": lambda net: torch.compile(nn.DataParallel(net), backend="eager"),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS.keys())
def test_masks_made_through_a_wrapper_fit_the_same_object(wrap):
    wrapped = wrap(conv_net())
    masks = sp.prune(wrapped, "magnitude", 0.5)
    assert set(masks) == {"0.weight", "4.weight", "8.weight"}
    inside = eager(wrapped)
    assert sp.count(wrapped, [batch(1)], masks) == sp.count(inside, [batch(1)], masks)
    assert sp.count(wrapped, [batch(1)], masks).pruned.alive == 384


def test_a_lightning_module_with_two_networks_is_taken_as_it_is():
    task = Task(conv_net(), conv_net())
    assert eager(task) is task


def test_sharded_parameters_are_refused_by_name():
    net = nn.Sequential(nn.Linear(3, 3))
    net[0].weight = DTensor(torch.zeros(3, 3))
    with pytest.raises(InvalidValue, match="sharded over processes"):
        eager(net)


@pytest.mark.parametrize("given", [None, torch.optim.SGD([torch.zeros(1)], lr=0.1), "net"])
def test_what_is_no_module_is_refused(given):
    with pytest.raises(InvalidValue, match=r"the model must be a torch\.nn\.Module, got"):
        sp.Pruner(given, "magnitude", sp.OneShot(0.5))
    with pytest.raises(InvalidValue, match=r"the model must be a torch\.nn\.Module, got"):
        sp.count(given, [torch.rand(1, 2)])
