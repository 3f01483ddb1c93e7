"""Masked and shrunk networks compute the same: the paper's networks and SpikingJelly's own."""

import sys
import types

import pytest
import torch
from shrinking import assert_shrinks, lively
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn

from spikeprune.zoo.registry import build


@pytest.fixture
def without_torchvision(monkeypatch):
    """SpikingJelly's model files import one name of torchvision, for downloads that nobody here makes."""
    stub = types.ModuleType("torchvision._internally_replaced_utils")
    stub.load_state_dict_from_url = None
    monkeypatch.setitem(sys.modules, "torchvision._internally_replaced_utils", stub)
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    for name in ("spiking_vgg", "spiking_resnet", "sew_resnet"):
        monkeypatch.delitem(sys.modules, f"spikingjelly.activation_based.model.{name}", raising=False)


def test_vgg16():
    model = lively(build("vgg16-channels", T=2))
    small, plan = assert_shrinks(model, torch.rand(1, 3, 32, 32))
    assert plan.layers["head"] == (10, 10)
    assert {type(m).__name__ for m in small.modules()} == {type(m).__name__ for m in model.modules()}


def test_resnet19_coupled_groups_narrow_the_stream():
    model = lively(build("resnet19-channels", T=2, size=16))
    _, plan = assert_shrinks(model, torch.rand(1, 3, 16, 16))
    for name in ("stem", "body.0.shortcut", "body.0.conv2", "body.7.conv2"):
        assert plan.layers[name][1] < plan.layers[name][0]
    assert plan.layers["body.0.shortcut"] == plan.layers["body.0.conv2"] == plan.layers["body.2.conv2"]


def test_resnet19_gates_keep_the_stream_wide():
    model = lively(build("resnet19-channels", T=2, size=16))
    small, plan = assert_shrinks(model, torch.rand(1, 3, 16, 16), "gate")
    for name in ("stem", "body.0.shortcut", "body.0.conv2", "body.7.conv2"):
        assert plan.layers[name][1] == plan.layers[name][0]
    block = small.body[1]
    assert block.bn1.num_features == 128 > block.conv1.in_channels == len(block.gate.index)
    assert block.conv1.out_channels == block.conv2.in_channels < 128


@pytest.mark.parametrize("mode", ["s", "m"])
def test_spiking_vgg11(without_torchvision, mode):
    from spikingjelly.activation_based.model.spiking_vgg import SpikingVGG

    plan = [8, "M", 16, "M", 32, 32, "M", 48, 48, "M", 48, 48, "M"]  # VGG-11's, narrower
    model = SpikingVGG(
        plan, batch_norm=True, norm_layer=layer.BatchNorm2d, num_classes=10, spiking_neuron=neuron.LIFNode, tau=1.5
    )
    model.classifier = nn.Sequential(  # as theirs, with 64 in place of 4096
        layer.Linear(48 * 7 * 7, 64), neuron.LIFNode(tau=1.5), layer.Dropout(), layer.Linear(64, 64),
        neuron.LIFNode(tau=1.5), layer.Dropout(), layer.Linear(64, 10),
    )  # fmt: skip
    nn.init.kaiming_uniform_(model.classifier[0].weight)
    nn.init.kaiming_uniform_(model.classifier[3].weight, a=0.2)
    functional.set_step_mode(lively(model), mode)
    shape = (2, 3, 64, 64) if mode == "s" else (3, 2, 3, 64, 64)
    small, _ = assert_shrinks(model, torch.rand(shape) * 3)
    assert small.classifier[0].in_features == 49 * small.features[-4].out_channels


def test_spiking_resnet18(without_torchvision):
    from spikingjelly.activation_based.model.spiking_resnet import spiking_resnet18

    model = spiking_resnet18(spiking_neuron=neuron.IFNode, surrogate_function=surrogate.ATan(), num_classes=10)
    functional.set_step_mode(lively(model), "m")
    _, plan = assert_shrinks(model, torch.rand(2, 1, 3, 32, 32))
    assert plan.layers["layer1.0.conv2"] == plan.layers["conv1"]  # the add before the neuron couples them


def test_sew_resnet18(without_torchvision):
    from spikingjelly.activation_based.model.sew_resnet import sew_resnet18

    model = sew_resnet18(cnf="ADD", spiking_neuron=neuron.IFNode, num_classes=10)
    functional.set_step_mode(lively(model), "m")
    _, plan = assert_shrinks(model, torch.rand(2, 1, 3, 32, 32))
    assert plan.layers["layer2.0.conv2"] == plan.layers["layer2.0.downsample.0"] == plan.layers["layer2.1.conv2"]
