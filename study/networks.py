"""Networks of the study that the zoo does not have."""

from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn


def cifar_small(classes: int = 10, T: int = 2) -> nn.Module:
    """conv 3x3 x 32 -> P -> conv 3x3 x 64 -> P -> fc, with BatchNorm and LIF after each conv; for 3x32x32."""

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        conv = layer.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        fires = neuron.LIFNode(tau=2.0, surrogate_function=surrogate.ATan(alpha=2.0), detach_reset=True)
        return [conv, layer.BatchNorm2d(outputs), fires, layer.MaxPool2d(2, 2)]

    net = nn.Sequential(*block(3, 32), *block(32, 64), layer.Flatten(), layer.Linear(64 * 8 * 8, classes))
    functional.set_step_mode(net, "m")
    return net
