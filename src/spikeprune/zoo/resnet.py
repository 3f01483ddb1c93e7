"""ResNet-19 of arXiv:2311.16141: pre-activation blocks (3, 3, 2) of widths 128, 256, 512.

It differs from other networks of that name: the stem has no normalisation and no neuron, all three stages halve the
map, the three 1x1 shortcuts take the raw stream, and there is no hidden fully connected layer.
"""

from spikingjelly.activation_based import layer
from torch import Tensor, nn

from spikeprune.zoo.net import SpikingNet
from spikeprune.zoo.paper import Gate, Variant
from spikeprune.zoo.registry import Spec

STAGES = ((128, 3), (256, 3), (512, 2))


class PreActBlock(nn.Module):
    """x + conv(LIF(BN(conv(LIF(gate(BN(x))))))); where the width changes, a strided 1x1 conv of the raw x is added.

    With `variant.bypass` the second conv takes the BatchNorm's output. The neuron beside it still runs: nothing but
    criticality reads it.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, variant: Variant):
        super().__init__()
        self.bn1 = variant.norm(in_channels)
        self.gate = Gate(in_channels) if variant.gates else nn.Identity()
        self.lif1 = variant.neuron(False)
        self.conv1 = layer.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = variant.norm(channels)
        self.lif2 = variant.neuron(False)
        self.conv2 = layer.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bypass = variant.bypass
        same = in_channels == channels and stride == 1
        self.shortcut = nn.Identity() if same else layer.Conv2d(in_channels, channels, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        current = self.bn2(self.conv1(self.lif1(self.gate(self.bn1(x)))))
        spike = self.lif2(current)
        return self.conv2(current if self.bypass else spike) + self.shortcut(x)


def resnet19(spec: Spec, variant: Variant) -> SpikingNet:
    """conv 3x3 to 64 -> blocks -> BN -> LIF -> global average -> classifier; weights start as PyTorch starts them."""
    channels = 64
    stem = layer.Conv2d(spec.channels, channels, 3, padding=1, bias=False)
    body: list[nn.Module] = []
    for width, blocks in STAGES:
        for block in range(blocks):
            body.append(PreActBlock(channels, width, 2 if block == 0 else 1, variant))
            channels = width
    body.append(variant.norm(channels))
    if variant.gates:
        body.append(Gate(channels))
    # The structured code cuts the gradient through the reset of this neuron alone.
    body += [variant.neuron(True), layer.AdaptiveAvgPool2d(1), layer.Flatten()]
    return SpikingNet(
        stem,
        nn.Sequential(*body),
        layer.Linear(channels, spec.classes),
        T=spec.T,
        image_shape=(spec.channels, spec.size, spec.size),
        repeat=variant.repeat,
        readout=variant.readout,
    )
