"""A small spiking transformer for small images: attention between spikes, with no softmax."""

from jaxtyping import Float
from spikingjelly.activation_based import layer
from torch import Tensor, nn

from spikeprune.zoo.net import SpikingNet
from spikeprune.zoo.registry import Spec
from spikeprune.zoo.slim import lif

STEM, WIDTH, HEADS, BLOCKS, EXPANSION = 16, 48, 3, 2, 2
# Counts of common spikes are large where many tokens fire; a power of two keeps their products exact in float32.
SCALE = 0.125


class SpikingAttention(nn.Module):
    """BN(conv(LIF(scale * q (k^T v)))) with q, k, v = LIF(BN(conv(LIF(x)))), each of 0 and 1.

    A place of the map is a token, and each head has its own part of the channels. k^T v is taken first: that is the
    same number as (q k^T) v, and its cost grows with the number of tokens and not with their square.

    Source: Zhou et al. 2023, arXiv:2209.15425 (spiking self-attention); here the residual stream x holds input
        currents, as in Yao et al. 2023, arXiv:2307.01694.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.neuron = lif()
        self.q, self.k, self.v = (nn.Sequential(*_conv_bn(width, width, 1), lif()) for _ in range(3))
        self.mixed = lif()
        self.out = nn.Sequential(*_conv_bn(width, width, 1))

    def forward(self, x: Float[Tensor, "*T N C H W"]) -> Float[Tensor, "*T N C H W"]:
        spikes = self.neuron(x)
        q, k, v = (self._tokens(part(spikes)) for part in (self.q, self.k, self.v))
        mixed = q.transpose(-2, -1) @ (k @ v.transpose(-2, -1)) * SCALE
        return self.out(self.mixed(mixed.transpose(-2, -1).reshape(x.shape)))

    def _tokens(self, x: Float[Tensor, "*T N C H W"]) -> Float[Tensor, "*T N heads c HW"]:
        return x.reshape(*x.shape[:-3], self.heads, x.shape[-3] // self.heads, x.shape[-2] * x.shape[-1])


class AttentionBlock(nn.Module):
    """y + BN(conv(LIF(BN(conv(LIF(y)))))) with y = x + attention(x); both convolutions are 1x1."""

    def __init__(self, width: int, heads: int, expansion: int):
        super().__init__()
        self.attention = SpikingAttention(width, heads)
        hidden = expansion * width
        self.mlp = nn.Sequential(lif(), *_conv_bn(width, hidden, 1), lif(), *_conv_bn(hidden, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        return x + self.mlp(x)


def transformer(spec: Spec) -> SpikingNet:
    """Spiking transformer: three 3x3 convolutions and two 2x2 poolings make the tokens, then attention blocks follow.

    At the end there are a LIF layer, a global average and the classifier.
    """
    stem = nn.Sequential(*_conv_bn(spec.channels, STEM, 3))
    body: list[nn.Module] = [lif(), layer.MaxPool2d(2, 2), *_conv_bn(STEM, WIDTH, 3)]
    body += [lif(), layer.MaxPool2d(2, 2), *_conv_bn(WIDTH, WIDTH, 3)]
    body += [AttentionBlock(WIDTH, HEADS, EXPANSION) for _ in range(BLOCKS)]
    body += [lif(), layer.AdaptiveAvgPool2d(1), layer.Flatten()]
    return SpikingNet(
        stem,
        nn.Sequential(*body),
        layer.Linear(WIDTH, spec.classes),
        T=spec.T,
        image_shape=(spec.channels, spec.size, spec.size),
        repeat="stem",
        readout="mean",
    )


def _conv_bn(in_channels: int, channels: int, size: int) -> tuple[nn.Module, nn.Module]:
    conv = layer.Conv2d(in_channels, channels, size, padding=size // 2, bias=False)
    return conv, layer.BatchNorm2d(channels)
