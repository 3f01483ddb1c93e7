"""VGG-16 of arXiv:2311.16141: thirteen 3x3 convolutions, average pooling, one classifier."""

from spikingjelly.activation_based import layer
from torch import nn

from spikeprune.zoo.net import SpikingNet
from spikeprune.zoo.paper import Variant
from spikeprune.zoo.registry import Spec

PLAN = (64, 64, "P", 128, 128, "P", 256, 256, 256, "P", 512, 512, 512, "P", 512, 512, 512, "P")


def vgg16(spec: Spec, variant: Variant) -> SpikingNet:
    """conv -> BN -> LIF, thirteen times; 2x2 average pooling behind the LIF, so the next conv sees multiples of 1/4.

    Convolutions have no bias and start Kaiming-normal (fan out), the classifier N(0, 0.01) with bias 0.
    """
    channels, *rest = PLAN
    assert isinstance(channels, int)
    stem = nn.Sequential(_conv(spec.channels, channels), variant.norm(channels))
    body: list[nn.Module] = [variant.neuron(False)]
    for width in rest:
        if isinstance(width, int):
            body += [_conv(channels, width), variant.norm(width), variant.neuron(False)]
            channels = width
        else:
            body.append(layer.AvgPool2d(2, 2))
    # At 32x32 this pools a 1x1 map; larger images need it.
    body += [layer.AdaptiveAvgPool2d(1), layer.Flatten()]
    head = layer.Linear(channels, spec.classes)
    nn.init.normal_(head.weight, 0, 0.01)
    nn.init.zeros_(head.bias)
    return SpikingNet(
        stem,
        nn.Sequential(*body),
        head,
        T=spec.T,
        image_shape=(spec.channels, spec.size, spec.size),
        repeat=variant.repeat,
        readout=variant.readout,
    )


def _conv(in_channels: int, out_channels: int) -> layer.Conv2d:
    conv = layer.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv
