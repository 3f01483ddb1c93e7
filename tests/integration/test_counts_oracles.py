"""`count` against independent counters: NeuroBench's SynapticOperations, and SpikingJelly's SynOpCounter."""

import norse.torch as norse
import pytest
import snntorch
import torch
from neurobench.metrics.workload import ActivationSparsity, SynapticOperations
from neurobench.models import SNNTorchModel, TorchModel
from spikingjelly.activation_based import functional, layer, neuron, op_counter, surrogate
from torch import Tensor, nn

from spikeprune import zoo
from spikeprune.count.counts import Counts, count


def prune_at_random(model: nn.Module, density: float = 0.3) -> dict[str, Tensor]:
    """Zeroes weights in place; returns the masks."""
    masks = {name: torch.rand_like(p) < density for name, p in model.named_parameters() if p.dim() > 1}
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_parameter(name).mul_(mask)
    return masks


class BatchFirst(nn.Module):
    """A SpikingJelly network as NeuroBench calls it: batch first, and from rest."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        functional.reset_net(self.net)
        return self.net(x.transpose(0, 1)).transpose(0, 1)


def neurobench(model: TorchModel | SNNTorchModel, x: Tensor) -> tuple[dict[str, float], float]:
    """NeuroBench's operations per sample, and its share of silent neurons, on a batch [N, T, ...]."""
    model.add_activation_module(neuron.BaseNode)
    model.register_hooks()
    data = (x, torch.zeros(len(x)))
    with torch.no_grad():
        predictions = model(x)
        operations = SynapticOperations()(model, predictions, data)
        silent = ActivationSparsity()(model, predictions, data)
    model.cleanup_hooks()
    return operations, silent


def agrees(c: Counts, x: Tensor, model: TorchModel | SNNTorchModel) -> None:
    operations, silent = neurobench(model, x)
    assert c.samples == len(x)
    assert operations["Effective_ACs"] + operations["Effective_MACs"] > 0
    assert c.pruned.acs == pytest.approx(operations["Effective_ACs"], rel=1e-12)
    assert c.pruned.mac_ops == pytest.approx(operations["Effective_MACs"], rel=1e-12)
    assert 0 < c.dense.firing_rate == pytest.approx(1 - silent, abs=1e-6)


class Graded(nn.Module):
    """Convolutions with binary, pooled and pixel inputs, groups and strides, in either step mode."""

    def __init__(self, step_mode: str):
        super().__init__()
        lif = {"tau": 1.5, "decay_input": False, "surrogate_function": surrogate.ATan()}
        self.layers = nn.Sequential(
            layer.Conv2d(2, 8, 3, padding=1, bias=True),
            neuron.LIFNode(**lif),
            layer.Conv2d(8, 8, 3, stride=2, padding=1, groups=2, bias=False),
            layer.BatchNorm2d(8),
            neuron.LIFNode(**lif),
            layer.AvgPool2d(2),
            layer.Conv2d(8, 4, 3, dilation=2, padding=2, bias=False),
            neuron.LIFNode(**lif),
            layer.Flatten(),
            layer.Linear(16, 3),
        )
        functional.set_step_mode(self, step_mode)
        self.step_mode = step_mode

    def forward(self, x: Tensor) -> Tensor:
        if self.step_mode == "m":
            return self.layers(x)
        return torch.stack([self.layers(x_t) for x_t in x])


@pytest.mark.parametrize("step_mode", ["s", "m"])
@pytest.mark.parametrize("given", ["zeros", "masks", "dense"])
def test_spikingjelly_network_equals_neurobench(step_mode, given):
    torch.manual_seed(1)
    net = Graded(step_mode)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.uniform_(module.weight, -0.3, 0.7)
    masks = None if given == "dense" else prune_at_random(net)
    x = torch.rand(3, 4, 2, 8, 8)  # [T, N, C, H, W], pixels
    c = count(net, [x], masks if given == "masks" else None)
    agrees(c, x.transpose(0, 1), TorchModel(BatchFirst(net)))
    assert c.pruned.acs > 0
    assert c.pruned.mac_ops > 0
    if given == "dense":
        assert c.dense == c.pruned
    else:
        assert c.pruned.synops < 0.5 * c.dense.synops


@pytest.mark.parametrize("name", ["digits-conv", "fashion-conv", "resnet19-channels"])
def test_zoo_network_equals_neurobench(name):
    torch.manual_seed(0)
    model = zoo.build(name, T=3, size=8)
    masks = prune_at_random(model)
    x = torch.randn(2, *model.image_shape)

    class FromImages(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = model

        def forward(self, x: Tensor) -> Tensor:
            functional.reset_net(self.net)
            return self.net(x)

    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0  # one pass sets the running averages, so that neurons fire
    with torch.no_grad():
        model.train()(x)
    functional.reset_net(model)
    agrees(count(model, [x], masks), x, TorchModel(FromImages()))


class SnnTorchNet(nn.Module):
    """One time step of a snnTorch network with hidden states, as NeuroBench runs it."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.lif1 = snntorch.Leaky(beta=0.8, init_hidden=True)
        self.pool = nn.MaxPool2d(2)
        self.fc = nn.Linear(4 * 9, 5)
        self.lif2 = snntorch.Leaky(beta=0.8, init_hidden=True, output=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.lif2(self.fc(self.pool(self.lif1(self.conv(x))).flatten(1)))


class OverTime(nn.Module):
    """The same network over [T, N, ...]."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.net(x_t)[0] for x_t in x])


@pytest.mark.parametrize("binary", [True, False])
def test_snntorch_network_equals_neurobench(binary):
    torch.manual_seed(0)
    net = SnnTorchNet()
    nn.init.uniform_(net.conv.weight, -0.5, 1)
    nn.init.uniform_(net.fc.weight, -0.5, 1)
    prune_at_random(net, density=0.5)
    x = torch.rand(6, 3, 1, 6, 6)
    if binary:
        x = (x < 0.3).float()
    c = count(OverTime(net), [x])
    agrees(c, x.transpose(0, 1), SNNTorchModel(net))
    assert (c.pruned.mac_ops == 0) == binary


class NorseNet(nn.Module):
    """A Norse network over [T, N, features]."""

    def __init__(self):
        super().__init__()
        first, second = nn.Linear(5, 7), nn.Linear(7, 3)
        self.net = norse.SequentialState(norse.Lift(first), norse.LIF(), norse.Lift(second), norse.LIF())
        nn.init.uniform_(first.weight, 0, 4)
        nn.init.uniform_(second.weight, 0, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)[0]


def test_norse_network_equals_neurobench():
    torch.manual_seed(0)
    net = NorseNet()
    prune_at_random(net, density=0.5)
    x = (torch.rand(30, 4, 5) < 0.6).float()
    c = count(net, [x])
    model = TorchModel(BatchFirst(net))
    model.register_hooks()
    with torch.no_grad():
        operations = SynapticOperations()(model, model(x.transpose(0, 1)), (x.transpose(0, 1), torch.zeros(4)))
    model.cleanup_hooks()
    assert c.samples == 4
    assert c.pruned.acs == operations["Effective_ACs"] > 0
    assert c.layers["net.2.lifted_module"].pruned.acs > 0


@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_dense_network_with_binary_inputs_equals_spikingjelly(step_mode):
    torch.manual_seed(1)
    net = Graded(step_mode).eval()
    net.layers[5] = layer.MaxPool2d(2, step_mode=step_mode)  # spikes stay binary
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.uniform_(module.weight, -0.3, 0.7)
    x = (torch.rand(3, 4, 2, 8, 8) < 0.3).float()
    counter = op_counter.SynOpCounter()
    with torch.no_grad(), op_counter.DispatchCounterMode([counter]):
        net(x)
    functional.reset_net(net)
    c = count(net, [x])
    assert c.dense.mac_ops == 0
    assert c.dense.synops * len(x[0]) == counter.get_total() > 0
