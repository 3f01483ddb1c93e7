"""Weights that are used by functions: each way of writing a product is counted and regrown, or named."""

import logging

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import spikeprune as sp
from gallery.loops import Rect
from gallery.oracle import operations
from spikeprune.core.errors import InvalidValue

WAYS = {
    "linear": lambda w, x: F.linear(x, w),
    "right": lambda w, x: x @ w.t(),
    "left": lambda w, x: (w @ x.t()).t(),
    "inner": lambda w, x: torch.inner(x, w),
    "tensordot": lambda w, x: torch.tensordot(x, w, dims=([1], [1])),
    "tensordot of one": lambda w, x: torch.tensordot(x, w.t(), 1),
    "einsum": lambda w, x: torch.einsum("oi,ni->no", w, x),
    "einsum with dots": lambda w, x: torch.einsum("...i,oi->...o", x, w),
    "bmm": lambda w, x: torch.bmm(w.expand(len(x), -1, -1), x.unsqueeze(-1)).squeeze(-1),
    "conv1d": lambda w, x: F.conv1d(x.unsqueeze(-1), w.unsqueeze(-1)).squeeze(-1),
    "permuted": lambda w, x: x.matmul(w.permute(1, 0)),
}


class Net(nn.Module):
    """[T, N, 12]; the hidden weight is used by `way`."""

    def __init__(self, way, outputs=14):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.way = nn.Linear(12, 16), nn.Linear(16, outputs, bias=False), way
        self.out = nn.Linear(outputs, 5)
        self.b.weight.data.mul_(4)

    def forward(self, x):
        v1 = v2 = out = 0
        for step in x:
            v1 = 0.5 * v1 + self.a(step)
            s1 = Rect.apply(v1 - 1)
            v1 = v1 - s1
            v2 = 0.5 * v2 + self.way(self.b.weight, s1)
            s2 = Rect.apply(v2 - 1)
            v2 = v2 - s2
            out = out + self.out(s2)
        return out


X = torch.rand(5, 3, 12, generator=torch.Generator().manual_seed(2)) * 4


@pytest.fixture(scope="module")
def plain():
    return _pruned(Net(WAYS["linear"]))


def _pruned(net):
    pruner = sp.Pruner(net, sp.Criticality(regrow=sp.Constant(0.3)), sp.OneShot(0.6))
    pruner.observe([X])
    pruner.cut()
    return pruner.masks


@pytest.mark.parametrize("way", list(WAYS))
def test_each_way_is_pruned_and_counted_as_the_layer_is(way, plain, caplog):
    net = Net(WAYS[way])
    found = sp.count(net, [X], time="first")
    assert found.dense.synops * 3 == operations(net, X)[0]
    masks = _pruned(net)
    assert {name: int(mask.sum()) for name, mask in masks.items()} == {n: int(m.sum()) for n, m in plain.items()}
    assert all(torch.equal(mask, plain[name]) for name, mask in masks.items())
    assert not caplog.records


def _synapses(way, outputs):
    net = Net(way, outputs)
    pruner = sp.Pruner(net, sp.Criticality(unit="synapse", regrow=0.3), sp.OneShot(0.6), include="b")
    pruner.observe([X])
    return pruner._observer.statistics(lambda tensor: tensor)["b.weight"]


@pytest.mark.parametrize("outputs", [14, 16])  # a square weight that is transposed has the shape of its parameter
def test_single_synapses_are_those_of_the_layer_wherever_the_weight_is_moved(outputs):
    wanted = _synapses(WAYS["linear"], outputs)
    assert wanted.unique().numel() > 10
    for way in WAYS.keys() - {"bmm", "conv1d"}:  # their results have an axis that the neuron does not see
        torch.testing.assert_close(_synapses(WAYS[way], outputs), wanted, msg=way)


def test_synapses_of_a_weight_that_is_repeated_are_refused():
    with pytest.raises(InvalidValue, match=r"'b\.weight' is rearranged before it is used.*or unit='neuron'"):
        _synapses(lambda w, x: F.linear(torch.cat([x, x], 1), w.repeat(1, 2)), 14)


PARTS = {
    "a row at a time": lambda w, x: torch.stack([torch.mv(w, row) for row in x]),
    "halves": lambda w, x: torch.cat([F.linear(x, w[:7]), F.linear(x, w[7:])], 1),
}


@pytest.mark.parametrize("name", list(PARTS))
def test_what_is_put_together_from_parts_is_counted(name):
    net = Net(PARTS[name])
    assert sp.count(net, [X], time="first").dense.synops * 3 == operations(net, X)[0]


def test_halves_of_a_weight_are_refused_by_its_name():
    with pytest.raises(InvalidValue, match=r"'b\.weight' reaches 'Rect of b' through a cat"):
        _pruned(Net(PARTS["halves"]))


@pytest.mark.parametrize("method", ["criticality", "magnitude"])
def test_a_use_that_is_no_known_product_is_named(method, caplog):
    caplog.set_level(logging.WARNING, "spikeprune")
    net = Net(lambda w, x: (x.unsqueeze(1) * w).sum(-1))
    sp.count(net, [X], time="first")
    assert "'b.weight' goes through the function" in caplog.text
    caplog.clear()
    sp.prune(net, method, 0.5, data=[X])
    assert ("'b.weight' goes through" in caplog.text) == (method == "criticality")
