"""Networks of the study that the zoo does not have."""

from spikingjelly.activation_based import layer, neuron, surrogate
from torch import nn

from spikeprune.zoo.net import SpikingNet


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
