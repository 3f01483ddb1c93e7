"""Networks of the study that the zoo does not have."""

from spikingjelly.activation_based import layer, neuron, surrogate
from torch import nn

from spikeprune.zoo.net import SpikingNet
from spikeprune.zoo.resnet import PreActBlock
from spikeprune.zoo.slim import RESNET_EIGHTH, SLIM, lif

# VGG-16's thirteen convolutions at an eighth of its width. One pooling fewer, since the image is pooled first.
PLAIN = (8, 8, "P", 16, 16, "P", 32, 32, 32, 64, 64, 64, "P", 64, 64, 64)


def small(classes: int = 10, T: int = 2, channels: int = 1, size: int = 28) -> nn.Module:
    """2x2 average pooling of the image, then 24-48-P-96-fc: conv 3x3, BatchNorm and LIF for each width.

    The first conv has stride 2 and runs once per image, so that a CPU trains the network in seconds. The last map is
    3x3 (4x4 in colour): on a 1x1 map eight of the nine weights of a 3x3 filter would only ever see padding, and a
    growth rule that notices this would win by it alone.
    """
    stem = nn.Sequential(
        layer.AvgPool2d(2), layer.Conv2d(channels, 24, 3, stride=2, padding=1, bias=False), layer.BatchNorm2d(24)
    )
    body = nn.Sequential(
        _lif(),
        layer.Conv2d(24, 48, 3, padding=1, bias=False), layer.BatchNorm2d(48), _lif(),
        layer.MaxPool2d(2, 2),
        layer.Conv2d(48, 96, 3, padding=1, bias=False), layer.BatchNorm2d(96), _lif(),
        layer.Flatten(),
    )  # fmt: skip
    head = layer.Linear(96 * (size // 8) ** 2, classes)
    image = (channels, size, size)
    return SpikingNet(stem, body, head, T=T, image_shape=image, repeat="stem", readout="mean")


def small_colour(classes: int = 10, T: int = 2) -> nn.Module:
    """`small` for 3x32x32."""
    return small(classes, T, channels=3, size=32)


def _lif() -> nn.Module:
    return neuron.LIFNode(tau=2.0, surrogate_function=surrogate.ATan(alpha=2.0), detach_reset=True)


def deep_plain(classes: int = 10, T: int = 2) -> nn.Module:
    """2x2 average pooling of a 3x32x32 image, then VGG-16's thirteen convolutions at an eighth of their width.

    Neurons, start values, max pooling and readout are those of the zoo's `vgg16-eighth`. Maps have sides of 16, 8, 4
    and 2, so that a pass costs a quarter of that network's.
    """
    channels, *rest = PLAIN
    assert isinstance(channels, int)
    stem = nn.Sequential(layer.AvgPool2d(2), _conv(3, channels), layer.BatchNorm2d(channels))
    body: list[nn.Module] = [lif()]
    for width in rest:
        if isinstance(width, int):
            body += [_conv(channels, width), layer.BatchNorm2d(width), lif()]
            channels = width
        else:
            body.append(layer.MaxPool2d(2, 2))
    return _deep(stem, body, channels, classes, T)


def deep_residual(classes: int = 10, T: int = 2) -> nn.Module:
    """2x2 average pooling of a 3x32x32 image, then ResNet-19 at an eighth of its width: the zoo's `resnet19-eighth`."""
    channels = 8
    stem = nn.Sequential(layer.AvgPool2d(2), _conv(3, channels))
    body: list[nn.Module] = []
    for width, blocks in RESNET_EIGHTH:
        for block in range(blocks):
            body.append(PreActBlock(channels, width, 2 if block == 0 else 1, SLIM))
            channels = width
    return _deep(stem, [*body, layer.BatchNorm2d(channels), lif()], channels, classes, T)


def _conv(in_channels: int, out_channels: int) -> nn.Module:
    conv = layer.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


def _deep(stem: nn.Module, body: list[nn.Module], channels: int, classes: int, T: int) -> nn.Module:
    features = nn.Sequential(*body, layer.AdaptiveAvgPool2d(1), layer.Flatten())
    head = layer.Linear(channels, classes)
    return SpikingNet(stem, features, head, T=T, image_shape=(3, 32, 32), repeat="stem", readout="mean")
