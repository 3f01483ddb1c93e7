"""What is counted where a forward computes the weight that acts, compared with the non-zeros of that weight."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import spikeprune as sp
from spikeprune.core.errors import InvalidValue


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


def inside_vmap(net, x):
    return torch.vmap(lambda row: net.layer.weight @ row)(x)


def module_inside_vmap(net, x):
    return torch.vmap(net.layer)(x)


def experts_inside_vmap(net, x):
    return torch.vmap(torch.mm)(x.view(-1, 4, 2).transpose(0, 1), net.v.view(4, 2, 2)).transpose(0, 1).flatten(1)


class Calls(Computes):
    """Does something else with its weights."""

    def forward(self, x):
        return self.compute(self, x)


@pytest.mark.parametrize("how", [inside_vmap, module_inside_vmap, experts_inside_vmap])
def test_a_product_inside_of_vmap_is_refused(how):
    with pytest.raises(InvalidValue, match=r"multiplies inside of torch\.vmap, where operations cannot be counted"):
        sp.count(Calls(how), [(torch.ones(5, 8), torch.zeros(5))])


@pytest.mark.parametrize("product", [torch.mm, torch.Tensor.mm, torch.spmm])
def test_every_name_of_a_product_is_counted(product):
    net, x = Calls(lambda net, x: product(x, net.layer.weight)), (torch.rand(5, 8) > 0.6).float()
    assert sp.count(net, [(x, torch.zeros(5))]).dense.synops * 5 == int(x.sum()) * 8


def cell(net, x):
    return torch.gru_cell(x, x, *net.gates.parameters())


def from_outside(net, x):
    return F.linear(torch.from_numpy(x.numpy()), net.layer.weight)


@pytest.mark.parametrize(
    ("how", "weights"), [(cell, {"gates.weight_ih", "gates.weight_hh"}), (from_outside, {"layer.weight"})]
)
def test_weights_that_are_not_counted_stand_beside_the_total(how, weights, caplog):
    net = Calls(how)
    net.gates = nn.GRUCell(8, 8)
    counts = sp.count(net, [(torch.ones(5, 8), torch.zeros(5))])
    assert set(counts.uncounted) == weights
    assert all(f"{name} (" in str(counts).partition("Not counted: ")[2] for name in weights)
    assert all(repr(name) in caplog.text for name in weights)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_on_the_way_are_no_error():
    def nested(net, x):
        rows = torch.nested.nested_tensor([net.layer(x)[:2], net.layer(x)[2:]])
        return torch.cat(rows.unbind())

    assert sp.count(Calls(nested), [(torch.ones(5, 8), torch.zeros(5))]).dense.synops == 128
