"""The score of `sp.squeeze` as a method of the Pruner."""

import pytest
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional

import spikeprune as sp
from nets import batch, conv_net, sgd, train
from spikeprune.core.errors import UnknownName
from spikeprune.core.evidence import Evidence
from spikeprune.core.statistic import SynapseMean
from spikeprune.methods.critical_energy import CriticalEnergy
from spikeprune.model.adapter import adapter_for


def test_two_inputs_by_hand():
    """x = (1, 2), one row each of u = 0 and u = 1, curve(u) = 1 - u / 2 -> 1 and 1/2.

    Rows (1, 2) and (3, 0): mean curve x^2 = ((1 + 9/2) / 2, (4 + 0) / 2) = (2.75, 2). With w = (2, -3): (11, 18).
    """
    statistic = SynapseMean(lambda u: 1 - u / 2, lambda d, x: d.T @ x, lambda x: (len(x), 1)).squared()
    statistic.step(torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0, 2.0], [3.0, 0.0]]))
    weights = {"w": torch.tensor([[2.0, -3.0]]), "classifier": torch.tensor([[0.5, -1.0]])}
    masks = {n: torch.ones_like(w, dtype=torch.bool) for n, w in weights.items()}
    scores = CriticalEnergy().score(Evidence(weights, masks, statistics={"w": statistic.result()}))
    assert scores["w"].tolist() == [[11.0, 18.0]]
    assert scores["classifier"].tolist() == [[0.25, 1.0]]


def test_the_statistic_is_that_of_the_network():
    net = conv_net().eval()
    x, _ = batch(0)
    pruner = sp.Pruner(net, CriticalEnergy(), sp.OneShot(0.5), allocate="lamp")
    pruner.observe([x], None)
    with torch.no_grad():
        adapter = adapter_for(net)
        current, v, total = net[1](net[0](x)), 0.0, 0.0
        unfolded = F.unfold(x.flatten(0, 1), 3, padding=1).view(3, 4, 18, 64)
        for step, rows in zip(current, unfolded, strict=True):
            v = v + (step - v) / 2
            slope = adapter.derivative(net[2], v - 1).flatten(2)
            total = total + torch.einsum("nop,nip->oi", slope, rows.square())
            v = v * (v < 1)
        functional.reset_net(net)
    want = total.view(4, 2, 3, 3) / (3 * 4 * 64) * net[0].weight.square()
    pruner.cut()
    kept = want.flatten().topk(int(pruner.masks["0.weight"].sum())).indices.sort().values
    assert torch.equal(pruner.masks["0.weight"].flatten().nonzero().flatten(), kept)


def test_gradual_pruning_with_lamp_meets_the_target():
    net = conv_net()
    optimizer = sgd(net)
    pruner = sp.Pruner(net, "critical-energy", sp.Cubic(to=0.8, end=6, every=2), allocate="lamp")
    pruner.attach(optimizer)
    train(net, optimizer, 7)
    assert pruner.masks.alive == int(768 * 0.2 + 1e-6)
    with pytest.raises(UnknownName, match="did you mean 'atan'"):
        CriticalEnergy(surrogate="atn")
