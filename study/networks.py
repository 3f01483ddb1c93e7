"""Networks of the study that the zoo does not have."""

from spikingjelly.activation_based import layer, neuron, surrogate
from torch import nn

from spikeprune.zoo.net import SpikingNet


def pooled(classes: int = 10, T: int = 2, channels: int = 1, size: int = 28) -> nn.Module:
    """2x2 average pooling of the image, then 32-P-64-P-128-fc: conv 3x3, BatchNorm and LIF for each width.

    The first conv runs once per image. At half the resolution a CPU trains it some 4 times as fast as at the whole.
    """
    stem = nn.Sequential(
        layer.AvgPool2d(2), layer.Conv2d(channels, 32, 3, padding=1, bias=False), layer.BatchNorm2d(32)
    )
    body = [_lif(), layer.MaxPool2d(2, 2)]
    for inputs, outputs in ((32, 64), (64, 128)):
        body += [layer.Conv2d(inputs, outputs, 3, padding=1, bias=False), layer.BatchNorm2d(outputs), _lif()]
        body += [layer.MaxPool2d(2, 2)] if outputs == 64 else []
    head = layer.Linear(128 * (size // 8) ** 2, classes)
    body.append(layer.Flatten())
    image = (channels, size, size)
    return SpikingNet(stem, nn.Sequential(*body), head, T=T, image_shape=image, repeat="stem", readout="mean")


def pooled_colour(classes: int = 10, T: int = 2) -> nn.Module:
    """`pooled` for 3x32x32."""
    return pooled(classes, T, channels=3, size=32)


def _lif() -> nn.Module:
    return neuron.LIFNode(tau=2.0, surrogate_function=surrogate.ATan(alpha=2.0), detach_reset=True)
