"""A small compiled network that holds every kind of layer with settings, for tests of files."""

import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn

import spikeprune as sp


def lif():
    return neuron.LIFNode(v_threshold=0.5, surrogate_function=surrogate.ATan())


def good_file(folder):
    """(path of a compiled file, an input [T, N, C, H, W])."""
    torch.manual_seed(0)
    net = nn.Sequential(
        layer.Conv2d(2, 8, 3, padding=1, bias=False), layer.BatchNorm2d(8), lif(), layer.MaxPool2d(2),
        layer.Conv2d(8, 8, 3, padding=1, bias=False), layer.BatchNorm2d(8), lif(), layer.AvgPool2d(2),
        layer.Flatten(), layer.Linear(32, 10),
    )  # fmt: skip
    functional.set_step_mode(net, "m")
    sp.prune(net.eval(), "magnitude", 0.8)
    x = torch.rand(3, 1, 2, 8, 8) * 4
    path = folder / "good.snn"
    sp.compile(net, x).save(path)
    return path, x


class _Residual(nn.Module):
    """A shortcut into an addition, an average over time at the end."""

    def __init__(self):
        super().__init__()
        self.a, self.b = layer.Conv2d(2, 4, 3, padding=1, bias=False), layer.Conv2d(4, 4, 3, padding=1, groups=2)
        self.norm, self.fire, self.last = layer.BatchNorm2d(4), lif(), layer.Linear(64, 3)
        self.pool, self.flat, self.then = layer.MaxPool2d(2), layer.Flatten(), neuron.IFNode(v_reset=None)
        functional.set_step_mode(self, "m")

    def forward(self, x):
        x = self.fire(self.norm(self.a(x)))
        return self.last(self.flat(self.pool(self.then(self.b(x) + x)))).mean(0)


class _Loop(nn.Module):
    """Recurrent weights and a filter in the model's own loop, which no operation but the cell holds."""

    def __init__(self):
        super().__init__()
        self.a, self.back, self.out = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        v = spike = total = 0
        for t, step in enumerate(x):
            v = 0.5 * v + self.a(step) + (self.back(spike) if t else 0)
            spike = heaviside(v - 0.3)
            v = v * (1 - spike)
            total = 0.9 * total + self.out(spike)
        return total


def heaviside(v):
    return surrogate.atan.apply(v, 2.0)


def good_files(folder):
    """Paths of several compiled files, which hold every kind of layer between them."""
    paths = [good_file(folder)[0]]
    torch.manual_seed(0)
    cases = {
        "residual": (_Residual(), torch.rand(3, 2, 2, 8, 8) * 4, "fp32"),
        "rounded": (_Residual(), torch.rand(3, 2, 2, 8, 8) * 4, "int16"),
        "loop": (_Loop(), torch.rand(4, 2, 6) * 4, "fp32"),
    }
    for name, (net, x, precision) in cases.items():
        sp.prune(net.eval(), "magnitude", 0.6)
        paths.append(folder / f"{name}.snn")
        sp.compile(net, x, precision).save(paths[-1])
    return paths
