"""Which neuron a weight feeds, read from the traced graph."""

from collections.abc import Collection
from dataclasses import dataclass

from spikeprune.core.errors import InvalidValue
from spikeprune.model.discover import SpikeNeuron
from spikeprune.model.trace import Graph, Node
from spikeprune.model.weights import Use


@dataclass(frozen=True)
class Pairing:
    """Which neuron a prunable weight feeds; `neuron` is None for a layer that feeds none, such as the classifier.

    Attributes:
        joined: on the way other channels are put beside the layer's own, so that its channels are not the neuron's.
        found: the neuron itself, if it is no module but was found by its spike function.
        use: how the weight is multiplied with, if that does not happen in the call of its own module.
        inner: whether the weight is multiplied with inside the neuron, as recurrent weights are.
    """

    weight: str
    layer: str
    neuron: str | None
    joined: bool = False
    found: SpikeNeuron | None = None
    use: Use | None = None
    inner: bool = False


_TRANSPARENT = {"norm", "pool", "add", "reshape", "identity", "select", "stack", "cat", "reduce", "write", "other"}


def pair(graph: Graph, weights: Collection[str] | None = None) -> dict[str, Pairing]:
    """Weight name -> its neuron: the first in execution order that the layer's output reaches.

    The output is followed through normalisation, pooling, adds, containers and shortcuts, never through another
    weight layer (which would mix the channels) or another neuron.

    Args:
        weights: the weights to look at; all, if not given.
    Raises: InvalidValue if one weight is used several times and feeds different neurons.
    """
    users = graph.users()
    pairs: dict[str, Pairing] = {}
    for node in graph.nodes:
        if node.weight is None or (weights is not None and node.weight not in weights):
            continue
        neuron, joined = _first_neuron(graph, users, node.index)
        known = pairs.get(node.weight)
        if known is None or known.neuron is None:
            layer = node.name if node.use is None else node.weight.removesuffix(".weight")
            found = graph.spikes.get(neuron or "")
            pairs[node.weight] = Pairing(node.weight, layer, neuron, joined, found, node.use)
        elif neuron is not None and neuron != known.neuron:
            raise InvalidValue(
                f"{node.weight!r} is used more than once and feeds both {known.neuron!r} and {neuron!r}; "
                f"its neuron cannot be told: pass exclude=[{node.weight!r}]"
            )
    for weight, (neuron, use) in graph.inner.items():
        if weights is None or weight in weights:
            pairs[weight] = Pairing(weight, weight.removesuffix(".weight"), neuron, use=use, inner=True)
    return pairs


def _first_neuron(graph: Graph, users: dict[int, list[int]], start: int) -> tuple[str | None, bool]:
    """The name of the neuron reached first, and whether only paths through a cat of channels lead there."""
    best: dict[int, bool] = {start: False}  # node -> joined on every path so far
    front = [start]
    while front:
        index = front.pop()
        if index != start and graph.nodes[index].kind not in _TRANSPARENT:
            continue
        for user in users[index]:
            joined = best[index] or _joins_channels(graph.nodes[user])
            if best.get(user, True) and not (user in best and joined):
                best[user] = joined
                front.append(user)
    neurons = [index for index in best if graph.nodes[index].kind == "neuron"]
    return (graph.nodes[min(neurons)].name, best[min(neurons)]) if neurons else (None, False)


def _joins_channels(node: Node) -> bool:
    """Whether the node is a cat of several tensors along anything but the first axis (time, or the batch)."""
    if node.kind != "cat" or len(node.inputs) < 2:
        return False
    positional, named = node.arguments
    return (positional[1] if len(positional) > 1 else named.get("dim", named.get("axis", 0))) != 0
