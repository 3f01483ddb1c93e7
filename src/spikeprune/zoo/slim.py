"""Deep networks for 32x32 images that are slim enough to be trained on a CPU: a plain one and a residual one."""

from spikingjelly.activation_based import layer, neuron, surrogate
from torch import nn

from spikeprune.zoo.net import SpikingNet
from spikeprune.zoo.paper import Variant
from spikeprune.zoo.registry import Spec
from spikeprune.zoo.resnet import PreActBlock

# Thirteen convolutions as in VGG-16, each a quarter as wide.
VGG_PLAN = (16, 16, "P", 32, 32, "P", 64, 64, 64, "P", 128, 128, 128, "P", 128, 128, 128)
VGG_EIGHTH = (8, 8, "P", 16, 16, "P", 32, 32, 32, "P", 64, 64, 64, "P", 64, 64, 64)
RESNET_STEM = 16
RESNET_STAGES = ((24, 3), (48, 3), (96, 2))
RESNET_EIGHTH = ((16, 3), (32, 3), (64, 2))


def lif(detach_reset: bool = True) -> neuron.LIFNode:
    """v_pre = v/4 + x, no scaling of the input; a spike when v_pre >= 1/2, then reset to 0.

    The input is not scaled and the threshold is low, so that enough spikes reach the last layer in two time steps.
    """
    return neuron.LIFNode(
        tau=4 / 3,
        decay_input=False,
        v_threshold=0.5,
        v_reset=0.0,
        surrogate_function=surrogate.Sigmoid(alpha=4.0),
        detach_reset=detach_reset,
    )


SLIM = Variant(neuron=lambda _: lif(), norm=layer.BatchNorm2d, gates=False, repeat="stem", readout="mean")


def vgg16_quarter(spec: Spec) -> SpikingNet:
    """VGG-16 with a quarter of the channels: thirteen times conv 3x3 -> BN -> LIF, with 2x2 max pooling in between.

    A global average and the classifier follow. Max pooling keeps spikes binary, so every convolution after the first
    needs only additions. At 32x32 the last maps are 2x2. Convolutions start Kaiming-normal (fan out).
    """
    return _vgg(spec, VGG_PLAN)


def vgg16_eighth(spec: Spec) -> SpikingNet:
    """`vgg16_quarter` at half of its width, an eighth of VGG-16's."""
    return _vgg(spec, VGG_EIGHTH)


def _vgg(spec: Spec, plan: tuple[int | str, ...]) -> SpikingNet:
    channels, *rest = plan
    assert isinstance(channels, int)
    stem = nn.Sequential(_conv(spec.channels, channels), layer.BatchNorm2d(channels))
    body: list[nn.Module] = [lif()]
    for width in rest:
        if isinstance(width, int):
            body += [_conv(channels, width), layer.BatchNorm2d(width), lif()]
            channels = width
        else:
            body.append(layer.MaxPool2d(2, 2))
    return _net(spec, stem, body, channels)


def resnet19_slim(spec: Spec) -> SpikingNet:
    """The pre-activation ResNet-19, with stages of width 24, 48, 96.

    conv 3x3 -> blocks -> BN -> LIF -> global average -> classifier.

    A block adds to the stream of membrane inputs, as in MS-ResNet (arXiv:2112.08954); the stream itself is no spike.
    """
    return _resnet(spec, RESNET_STEM, RESNET_STAGES)


def resnet19_eighth(spec: Spec) -> SpikingNet:
    """`resnet19_slim` with a stem of 8 and stages of width 16, 32, 64, an eighth of ResNet-19's."""
    return _resnet(spec, RESNET_STEM // 2, RESNET_EIGHTH)


def _resnet(spec: Spec, stem: int, stages: tuple[tuple[int, int], ...]) -> SpikingNet:
    channels = stem
    body: list[nn.Module] = []
    for width, blocks in stages:
        for block in range(blocks):
            body.append(PreActBlock(channels, width, 2 if block == 0 else 1, SLIM))
            channels = width
    body += [layer.BatchNorm2d(channels), lif()]
    return _net(spec, _conv(spec.channels, stem), body, channels)


def _net(spec: Spec, stem: nn.Module, body: list[nn.Module], channels: int) -> SpikingNet:
    return SpikingNet(
        stem,
        nn.Sequential(*body, layer.AdaptiveAvgPool2d(1), layer.Flatten()),
        layer.Linear(channels, spec.classes),
        T=spec.T,
        image_shape=(spec.channels, spec.size, spec.size),
        repeat=SLIM.repeat,
        readout=SLIM.readout,
    )


def _conv(in_channels: int, out_channels: int) -> layer.Conv2d:
    conv = layer.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv
