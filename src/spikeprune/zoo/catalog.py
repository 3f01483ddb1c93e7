"""The zoo on one page. A framework is imported only when a network is built, so listing the names costs nothing."""

from typing import TYPE_CHECKING

from spikeprune.zoo.registry import Spec, register

if TYPE_CHECKING:
    from spikeprune.zoo.net import SpikingNet


@register("vgg16-weights", channels=3, min_size=32)
def vgg16_weights(spec: Spec) -> "SpikingNet":
    """VGG-16 as the weight pruning experiments of arXiv:2311.16141 use it."""
    from spikeprune.zoo.paper import WEIGHTS
    from spikeprune.zoo.vgg import vgg16

    return vgg16(spec, WEIGHTS)


@register("vgg16-channels", channels=3, min_size=32)
def vgg16_channels(spec: Spec) -> "SpikingNet":
    """VGG-16 as the channel pruning experiments of arXiv:2311.16141 use it."""
    from spikeprune.zoo.paper import CHANNELS
    from spikeprune.zoo.vgg import vgg16

    return vgg16(spec, CHANNELS)


@register("resnet19-weights", channels=3)
def resnet19_weights(spec: Spec) -> "SpikingNet":
    """ResNet-19 (pre-activation) of the weight pruning experiments; the second neuron of each block is used."""
    from spikeprune.zoo.paper import WEIGHTS
    from spikeprune.zoo.resnet import resnet19

    return resnet19(spec, WEIGHTS)


@register("resnet19-weights-authors", channels=3)
def resnet19_weights_authors(spec: Spec) -> "SpikingNet":
    """ResNet-19 exactly as the authors' unstructured code builds it: the second neuron of each block is bypassed.

    The second convolution of a block takes the BatchNorm's output, so 8 of the 17 neurons pass nothing on and 8 of
    the convolutions multiply real numbers. This is the only ResNet-19 in the public code (commit ee3170e) that runs.
    The paper's figures for weights are of this network if that code made them. `resnet19-weights` is the repaired one.
    """
    from spikeprune.zoo.paper import WEIGHTS_AUTHORS
    from spikeprune.zoo.resnet import resnet19

    return resnet19(spec, WEIGHTS_AUTHORS)


@register("resnet19-channels", channels=3)
def resnet19_channels(spec: Spec) -> "SpikingNet":
    """ResNet-19 with channel gates, as the channel pruning experiments of arXiv:2311.16141 use it."""
    from spikeprune.zoo.paper import CHANNELS
    from spikeprune.zoo.resnet import resnet19

    return resnet19(spec, CHANNELS)


@register("vgg16-quarter", channels=3, min_size=16)
def vgg16_quarter(spec: Spec) -> "SpikingNet":
    """VGG-16's thirteen convolutions at a quarter of its width, with max pooling."""
    from spikeprune.zoo.slim import vgg16_quarter as build

    return build(spec)


@register("resnet19-slim", channels=3)
def resnet19_slim(spec: Spec) -> "SpikingNet":
    """ResNet-19 (pre-activation) with stages of width 24, 48, 96."""
    from spikeprune.zoo.slim import resnet19_slim as build

    return build(spec)


@register("vgg16-eighth", channels=3, min_size=16)
def vgg16_eighth(spec: Spec) -> "SpikingNet":
    """VGG-16's thirteen convolutions at an eighth of its width, with max pooling."""
    from spikeprune.zoo.slim import vgg16_eighth as build

    return build(spec)


@register("resnet19-eighth", channels=3)
def resnet19_eighth(spec: Spec) -> "SpikingNet":
    """ResNet-19 (pre-activation) with stages of width 16, 32, 64."""
    from spikeprune.zoo.slim import resnet19_eighth as build

    return build(spec)


@register("recurrent", channels=700)
def recurrent(spec: Spec) -> "SpikingNet":
    """Two recurrent layers of 128 neurons and the classifier, for spikes of 700 channels as SHD has them."""
    from spikeprune.zoo.recurrent import recurrent_net

    return recurrent_net(spec, (128, 128))


@register("digits-conv-small", channels=1, min_size=4)
def digits_conv_small(spec: Spec) -> "SpikingNet":
    """16-P-32-P-fc, for 8x8 images."""
    from spikeprune.zoo.small import conv_net

    return conv_net(spec, (16, "P", 32, "P"))


@register("digits-conv", channels=1, min_size=2)
def digits_conv(spec: Spec) -> "SpikingNet":
    """32-64-P-fc, for 8x8 images."""
    from spikeprune.zoo.small import conv_net

    return conv_net(spec, (32, 64, "P"))


@register("digits-conv-wide", channels=1, min_size=4)
def digits_conv_wide(spec: Spec) -> "SpikingNet":
    """64-P-128-P-fc, for 8x8 images: as many neurons as `digits-conv`, with three times the weights."""
    from spikeprune.zoo.small import conv_net

    return conv_net(spec, (64, "P", 128, "P"))


@register("fashion-conv", channels=1, min_size=4)
def fashion_conv(spec: Spec) -> "SpikingNet":
    """32-P-64-P-fc, for 28x28 images."""
    from spikeprune.zoo.small import conv_net

    return conv_net(spec, (32, "P", 64, "P"))


@register("fashion-conv-small", channels=1, min_size=4)
def fashion_conv_small(spec: Spec) -> "SpikingNet":
    """24-P-48-P-96-fc, for 28x28 images."""
    from spikeprune.zoo.small import conv_net

    return conv_net(spec, (24, "P", 48, "P", 96))


@register("fashion-conv-large", channels=1, min_size=4)
def fashion_conv_large(spec: Spec) -> "SpikingNet":
    """64-64-P-128-128-P-fc, for 28x28 images."""
    from spikeprune.zoo.small import conv_net

    return conv_net(spec, (64, 64, "P", 128, 128, "P"))


@register("fashion-conv-fc", channels=1, min_size=4)
def fashion_conv_fc(spec: Spec) -> "SpikingNet":
    """32-P-64-P-256-fc, for 28x28 images: nearly all weights in one Linear layer, which costs little to compute."""
    from spikeprune.zoo.small import conv_net

    return conv_net(spec, (32, "P", 64, "P"), hidden=(256,))


@register("fashion-transformer", channels=1, min_size=4)
def fashion_transformer(spec: Spec) -> "SpikingNet":
    """Three convolutions, then two blocks of spiking attention of width 48, for 28x28 images."""
    from spikeprune.zoo.transformer import transformer

    return transformer(spec)


@register("mlp", channels=1)
def mlp(spec: Spec) -> "SpikingNet":
    """256-256-fc on the flattened image."""
    from spikeprune.zoo.small import mlp

    return mlp(spec, (256, 256))
