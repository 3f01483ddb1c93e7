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
