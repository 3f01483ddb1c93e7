"""Hears neurons that are no modules: spike functions that were found while the model was traced."""

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import final

from torch import nn

from spikeprune.model.adapter import Adapter
from spikeprune.model.discover import SpikeNeuron
from spikeprune.model.trace import Graph, Tracer
from spikeprune.model.weights import Multiplication, Use

Hidden = Callable[[], AbstractContextManager[None]]


@final
class _Ear:
    """Passes on the calls of spike functions."""

    def __init__(self, hear: Callable[[SpikeNeuron], None]) -> None:
        self.hear = hear

    def began(self) -> None:
        pass

    def spike(self, neuron: SpikeNeuron) -> None:
        self.hear(neuron)

    def used(self, use: Use, operation: Multiplication) -> None:
        pass


@contextmanager
def heard(
    model: nn.Module, adapter: Adapter | None, graph: Graph, hear: Callable[[SpikeNeuron], None]
) -> Generator[Hidden]:
    """While it is open, `hear(neuron)` is told of every call of a found spike function; `neuron.call` is the call.

    Yields: a context in which the watch over the forward does not see what we compute ourselves.
    """
    if not graph.spikes:
        yield nullcontext
        return
    tracer = Tracer(model, adapter, lambda _: None, listener=_Ear(hear), known=graph, once=False)
    try:
        yield lambda: tracer.watch.hidden()
    finally:
        tracer.remove()
