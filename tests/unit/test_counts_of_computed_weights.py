"""What is counted where a forward computes the weight that acts, compared with the non-zeros of that weight."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import spikeprune as sp


class Computes(nn.Module):
    """One product with a weight that is computed from the stored, square one."""

    def __init__(self, compute):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.compute = nn.Linear(8, 8), compute
        self.u, self.v = nn.Parameter(torch.randn(8, 2)), nn.Parameter(torch.randn(2, 8))

    def forward(self, x):
        return F.linear(x, self.compute(self, self.layer.weight), self.layer.bias)


COMPUTED = {
    "transposed": lambda net, w: w.t(),
    "softmax": lambda net, w: w.softmax(1),
    "low rank added": lambda net, w: w + net.u @ net.v,
    "diagonal set": lambda net, w: w.clone().fill_diagonal_(0.5),
    "absolute": lambda net, w: w.abs(),
}


@pytest.mark.parametrize("how", list(COMPUTED))
def test_operations_are_those_of_the_weight_that_acts(how):
    net, x = Computes(COMPUTED[how]), (torch.rand(5, 8) > 0.6).float()
    masks = sp.prune(net, "magnitude", 0.5)
    acts = net.compute(net, net.layer.weight) != 0
    counts = sp.count(net, [(x, torch.zeros(5))], masks)
    assert counts.pruned.synops * 5 == int((x @ acts.float().t()).sum())
    assert counts.dense.synops * 5 == int(x.sum()) * 8


def test_of_a_model_that_does_not_obey_the_figures_are_those_of_the_masks():
    net, x = Computes(COMPUTED["absolute"]), torch.ones(5, 8)
    masks = sp.prune(net, "magnitude", 0.5)
    nn.init.ones_(net.layer.weight)
    assert sp.count(net, [(x, torch.zeros(5))], masks).pruned.synops == int(masks["layer.weight"].sum())
