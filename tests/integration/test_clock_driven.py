"""SpikingJelly 0.0.0.0.12, whose neurons are in `clock_driven`: they are found by their spike functions.

It runs in the environment that `make test-compat` builds, and is skipped where SpikingJelly is newer.
"""

import pytest
import torch
from torch import nn

import spikeprune as sp
from spikeprune.cli.doctor import examine
from spikeprune.core.errors import UserError
from spikeprune.runtime.fuse import fuse_report

clock_driven = pytest.importorskip("spikingjelly.clock_driven")


class Net(nn.Module):
    """As its users wrote them: single-step neurons, the loop over time in the forward."""

    def __init__(self):
        super().__init__()
        from spikingjelly.clock_driven import neuron, surrogate

        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.n1, self.n2 = (neuron.LIFNode(surrogate_function=surrogate.ATan()) for _ in range(2))
        self.fc, self.out = nn.Linear(8 * 16, 16), nn.Linear(16, 5)
        nn.init.constant_(self.norm.bias, 0.5)
        self.fc.weight.data.mul_(6)

    def forward(self, x):
        from spikingjelly.clock_driven import functional

        functional.reset_net(self)
        spikes = 0
        for step in x:
            y = self.n1(self.norm(self.conv(step)))
            spikes = spikes + self.out(self.n2(self.fc(nn.functional.max_pool2d(y, 2).flatten(1))))
        return spikes / len(x)


X = torch.rand(4, 3, 2, 8, 8, generator=torch.Generator().manual_seed(0)) * 4


@pytest.mark.parametrize("unit", ["neuron", "synapse"])
def test_pruned_by_criticality_and_regrown(unit):
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    schedule = sp.Cubic(to=0.8, begin=0, end=6, every=2)
    pruner = sp.Pruner(net, sp.Criticality(regrow=0.2, unit=unit), schedule).attach(optimizer)
    for _ in range(8):
        optimizer.zero_grad()
        net(X).square().mean().backward()
        optimizer.step()
    pruner.finish()
    assert pruner.alive == int(pruner.prunable * 0.2 + 1e-6)
    assert sum(update["regrown"] for update in pruner.rounds) > 0
    assert [row.neuron is not None for row in pruner.table()] == [True, True, False]


@pytest.mark.filterwarnings("ignore:.*rows for up to")
def test_counted_squeezed_and_shrunk():
    net = Net().eval()
    counts = sp.count(net, [X], time="first")
    assert counts.samples == 3
    assert counts.dense.macs == 4 * (64 * 8 * 18 + 128 * 16 + 80)
    assert sp.squeeze(net, [X], 0.5, images=3, rounds=1, time="first").images == 3
    net = Net().eval()
    masks = sp.prune(net, "magnitude", 0.3, data=[X], pattern="channel")
    small, _ = sp.shrink(net, masks, X)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in net.parameters())


def test_compiled_and_shown_by_the_doctor():
    net = Net().eval()
    compiled = sp.compile(net, X * 0.1)
    with torch.no_grad():
        wanted = net(X)
    assert wanted.std() > 0.01
    torch.testing.assert_close(compiled(X), wanted, rtol=1e-3, atol=1e-4)
    assert "compile" in examine()["frameworks"]["spikingjelly"]["works"]


def test_what_does_not_work_says_so_and_the_doctor_too():
    with pytest.raises(UserError) as caught:
        sp.model("mlp", size=8)
    assert 20 <= len(str(caught.value)) <= 400
    assert not any(row.fused for row in fuse_report(sp.fuse(Net().eval())))
    told = examine()["frameworks"]["spikingjelly"]
    assert told["version"] == "0.0.0.0.12"
    assert "fuse" in told["missing"]
