"""How values are kept packed in bits: spikes, their maxima, their averages over small windows."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spikeprune.runtime.compile.network import LoweredNetwork

MAX_PLANE_SUM = 15  # two planes of two bits


@dataclass
class Packing:
    """How a value is packed into words: (factor, largest value) of each plane."""

    planes: tuple[tuple[float, int], ...]


SPIKES = Packing(((1.0, 1),))


def packings(network: "LoweredNetwork") -> dict[int, Packing]:
    """The values that can be kept packed, each with its packing."""
    found: dict[int, Packing] = {}
    for layer in network.layers:
        packing = layer.op.packing(layer, found.get(layer.inputs[0]))
        if packing is not None:
            found[layer.output] = packing
    return found
