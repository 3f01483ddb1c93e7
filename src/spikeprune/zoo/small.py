"""Small networks for small images, quick to train on a CPU."""

from spikingjelly.activation_based import layer, neuron, surrogate
from torch import nn

from spikeprune.zoo.net import SpikingNet
from spikeprune.zoo.registry import Spec


def conv_net(spec: Spec, plan: tuple[int | str, ...], hidden: tuple[int, ...] = ()) -> SpikingNet:
    """conv 3x3 -> BN -> LIF for each number in `plan`, 2x2 max pooling for each "P", then the classifier.

    Before the classifier stands Linear -> BN -> LIF for each width in `hidden`.

    Max pooling keeps spikes binary, so every layer behind the first needs only additions. The first conv and its BN
    run once per image.
    """
    channels, *rest = plan
    assert isinstance(channels, int)
    stem = nn.Sequential(*_conv_bn(spec.channels, channels))
    body: list[nn.Module] = [_lif()]
    size = spec.size
    for width in rest:
        if isinstance(width, int):
            body += [*_conv_bn(channels, width), _lif()]
            channels = width
        else:
            body.append(layer.MaxPool2d(2, 2))
            size //= 2
    body.append(layer.Flatten())
    features = channels * size * size
    for width in hidden:
        body += [*_linear_bn(features, width), _lif()]
        features = width
    return _net(spec, stem, body, features)


def mlp(spec: Spec, hidden: tuple[int, ...]) -> SpikingNet:
    """Linear -> BN -> LIF for each width in `hidden`, then the classifier.

    The first Linear and its BN run once per image.
    """
    features, *rest = hidden
    stem = nn.Sequential(layer.Flatten(), *_linear_bn(spec.channels * spec.size**2, features))
    body: list[nn.Module] = [_lif()]
    for width in rest:
        body += [*_linear_bn(features, width), _lif()]
        features = width
    return _net(spec, stem, body, features)


def _net(spec: Spec, stem: nn.Module, body: list[nn.Module], features: int) -> SpikingNet:
    return SpikingNet(
        stem,
        nn.Sequential(*body),
        layer.Linear(features, spec.classes),
        T=spec.T,
        image_shape=(spec.channels, spec.size, spec.size),
        repeat="stem",
        readout="mean",
    )


def _conv_bn(in_channels: int, channels: int) -> tuple[nn.Module, nn.Module]:
    return layer.Conv2d(in_channels, channels, 3, padding=1, bias=False), layer.BatchNorm2d(channels)


def _linear_bn(in_features: int, features: int) -> tuple[nn.Module, nn.Module]:
    return layer.Linear(in_features, features, bias=False), layer.BatchNorm1d(features)


def _lif() -> neuron.LIFNode:
    return neuron.LIFNode(tau=2.0, surrogate_function=surrogate.ATan(alpha=2.0), detach_reset=True)
