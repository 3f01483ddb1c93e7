"""The model during a squeeze: what may be pruned, which neuron it feeds, and a way back to what it was."""

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from spikeprune.model.adapter import Adapter
from spikeprune.model.glance import refuse_computed
from spikeprune.model.pairing import Pairing, pair
from spikeprune.model.trace import Graph
from spikeprune.squeeze.batches import traced
from spikeprune.squeeze.statistics import norms


@final
@dataclass(frozen=True)
class Network:
    """A traced model.

    Attributes:
        parameters: name -> weight that may be pruned.
        layers: name -> modules that use it.
        pairs: name -> the neuron it feeds; weights that took no part in the forward are missing.
    """

    model: nn.Module
    adapter: Adapter | None
    parameters: dict[str, nn.Parameter]
    layers: dict[str, list[nn.Module]]
    graph: Graph
    pairs: dict[str, Pairing]


def read(
    model: nn.Module, adapter: Adapter | None, parameters: dict[str, nn.Parameter], example: Tensor
) -> Network:  # fmt: skip
    """Traces one forward.

    Raises: InvalidValue if the model does not take the example.
    """
    graph = traced(model, adapter, example)
    refuse_computed(graph, parameters)
    users = [m for m in model.modules() if isinstance(m, (_ConvNd, nn.Linear))]
    layers: dict[str, list[nn.Module]] = {n: [m for m in users if m.weight is p] for n, p in parameters.items()}
    return Network(model, adapter, parameters, layers, graph, pair(graph, parameters))


@contextmanager
def unharmed(model: nn.Module, adapter: Adapter | None) -> Generator[None]:
    """Whatever fails inside, a Ctrl-C included, leaves the parameters, buffers and modes bit for bit as they were.

    Membrane state comes back in any case.
    """
    put_back = snapshot(model)
    states: Any = adapter.states(model) if adapter is not None else None
    try:
        yield
    except BaseException:
        put_back()
        raise
    finally:
        if adapter is not None:
            adapter.restore(model, states)


def snapshot(model: nn.Module) -> Callable[[], None]:
    """A function that restores the present parameters, buffers and modes, bit for bit."""
    parameters = [(p, p.detach().clone()) for p in model.parameters()]
    buffers = [(m, n, b, b.clone()) for m in model.modules() for n, b in m._buffers.items() if b is not None]
    modes = [(m, m.training) for m in model.modules()]
    momenta = [(m, m.momentum) for m in norms(model).values()]

    @torch.no_grad()
    def put_back() -> None:
        for p, value in parameters:
            p.data.copy_(value)
        for module, name, buffer, value in buffers:
            if buffer.shape == value.shape:
                buffer.copy_(value)
            module._buffers[name] = buffer
        for module, training in modes:
            module.training = training
        for module, momentum in momenta:
            module.momentum = momentum

    return put_back


def norm_behind(network: Network, name: str) -> nn.Module | None:
    """The normalisation that alone reads a layer's output, if there is one."""
    users = network.graph.users()
    nodes = [node for node in network.graph.nodes if node.weight == name]
    found = set[nn.Module | None]()
    for node in nodes:
        readers = list(_through(network, users, node.index))
        found.add(readers[0] if len(readers) == 1 else None)
    return found.pop() if len(found) == 1 else None


def _through(network: Network, users: dict[int, list[int]], index: int) -> Iterator[nn.Module | None]:
    for user in users[index]:
        node = network.graph.nodes[user]
        if node.kind in ("reshape", "identity"):
            yield from _through(network, users, user)
        else:
            yield node.module if node.kind == "norm" else None
