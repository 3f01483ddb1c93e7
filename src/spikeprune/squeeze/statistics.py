"""BatchNorm's running statistics measured again, and the spikes of two networks compared."""

from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from spikeprune.core.errors import InvalidValue
from spikeprune.core.mask import pack
from spikeprune.model.adapter import Adapter
from spikeprune.model.discover import SpikeNeuron
from spikeprune.model.examples import undisturbed
from spikeprune.model.trace import Graph
from spikeprune.squeeze.ear import heard


def norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """Name -> BatchNorm layer that keeps running statistics."""
    return {n: m for n, m in model.named_modules() if isinstance(m, _BatchNorm) and m.running_mean is not None}


@contextmanager
def evaluating(model: nn.Module) -> Generator[None]:
    """The model in eval mode; every module's own mode comes back."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def normalizing_by_batch(model: nn.Module) -> Generator[None]:
    """Eval mode, but BatchNorm normalises by each batch; its running statistics stay, and all that was comes back."""
    layers = [(layer, layer.track_running_stats) for layer in norms(model).values()]
    try:
        with evaluating(model):
            for layer, _ in layers:
                layer.train()
                layer.track_running_stats = False
            yield
    finally:
        for layer, tracked in layers:
            layer.track_running_stats = tracked


@torch.no_grad()
def measure_again(model: nn.Module, adapter: Adapter | None, batches: Iterable[Tensor]) -> int:
    """Sets every BatchNorm's running mean and variance to those of the batches; returns how many layers it has.

    The mean over all calls of the statistics that train mode computes, each call weighted by the values in it. Only
    BatchNorm is in train mode meanwhile. The count of batches tracked stays as it was.

    Raises: InvalidValue if a layer sees a single value per channel.
    """
    layers = norms(model)
    if not layers:
        return 0
    before = {n: None if m.num_batches_tracked is None else m.num_batches_tracked.clone() for n, m in layers.items()}
    momenta = {n: m.momentum for n, m in layers.items()}
    states = None if adapter is None else adapter.states(model)
    hooks = [m.register_forward_pre_hook(_Weighting(n)) for n, m in layers.items()]
    try:
        with evaluating(model):
            for layer in layers.values():
                layer.train()
            for x in batches:
                if adapter is not None:
                    adapter.restore(model, states)
                    adapter.reset(model)
                model(x)
    finally:
        for hook in hooks:
            hook.remove()
        for name, layer in layers.items():
            layer.momentum = momenta[name]
            if before[name] is not None and layer.num_batches_tracked is not None:
                layer.num_batches_tracked.copy_(before[name])  # type: ignore[arg-type]
        if adapter is not None:
            adapter.restore(model, states)
    return len(layers)


@final
class _Weighting:
    """Before each call of a BatchNorm: the momentum that makes its running statistics the mean over all calls."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.seen = 0

    def __call__(self, layer: nn.Module, args: tuple[Any, ...]) -> None:
        values = args[0].numel() // layer.num_features  # type: ignore[operator]
        if values < 2:
            raise InvalidValue(
                f"the statistics of {self.name!r} cannot be measured from one value per channel; give more images "
                "in a batch, or pass statistics=False"
            )
        self.seen += values
        layer.momentum = values / self.seen  # type: ignore[assignment]


@final
class Spikes:
    """The spikes of every neuron on the data: neuron name -> (bits, how many values) of each of its calls."""

    def __init__(self, calls: Mapping[str, list[tuple[Tensor, int]]]) -> None:
        self.calls = calls

    def rate(self, name: str) -> float:
        """Spikes per neuron and time step."""
        count = sum(n for _, n in self.calls[name])
        fired = sum(_ones(bits) for bits, _ in self.calls[name])
        return fired / count if count else 0.0

    def against(self, other: "Spikes", name: str) -> tuple[float, float]:
        """(share of outputs that are equal, share of this one's spikes that the other has too)."""
        count = equal = fired = both = 0
        for (a, n), (b, m) in zip(self.calls[name], other.calls[name], strict=True):
            assert n == m
            count += n
            equal += n - _ones(a ^ b)
            fired += _ones(a)
            both += _ones(a & b)
        return (equal / count if count else 1.0), (both / fired if fired else 1.0)


_BITS = torch.tensor([bin(i).count("1") for i in range(256)], dtype=torch.uint8)


def _ones(bits: Tensor) -> int:
    return int(_BITS.to(bits.device)[bits.long()].sum(dtype=torch.long))


@torch.no_grad()
def watch_spikes(model: nn.Module, adapter: Adapter | None, graph: Graph, batches: Iterable[Tensor]) -> Spikes:
    """Runs the batches in eval mode and keeps where each neuron fired."""
    keeper = SpikeKeeper(model, adapter, graph)
    with evaluating(model), keeper, heard(model, adapter, graph, keeper.hear):
        for x in batches:
            with undisturbed(model, adapter):
                model(x)
    return Spikes(keeper.calls)


@final
class SpikeKeeper:
    """Keeps the bits of every neuron's output while it is open; `hear` is told of those that are no modules."""

    def __init__(self, model: nn.Module, adapter: Adapter | None, graph: Graph) -> None:
        self.neurons = {} if adapter is None else adapter.neurons(model)
        self.calls: dict[str, list[tuple[Tensor, int]]] = {n: [] for n in (*self.neurons, *graph.spikes)}
        self._names: dict[nn.Module, str] = {neuron: n for n, neuron in graph.spikes.items()}
        self._handles: list[Any] = []

    def __enter__(self) -> "SpikeKeeper":
        self._handles = [neuron.register_forward_hook(self._keeper(n)) for n, neuron in self.neurons.items()]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _keeper(self, name: str) -> Any:
        def keep(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
            self._keep(name, output[0] if isinstance(output, tuple) else output)

        return keep

    def _keep(self, name: str, spikes: Tensor) -> None:
        with torch.no_grad(), torch._C.DisableTorchFunction():
            self.calls[name].append((pack(spikes.detach() != 0), spikes.numel()))

    def hear(self, neuron: SpikeNeuron) -> None:
        """Keeps the spikes of a call of a found spike function."""
        if neuron in self._names and neuron.call is not None:
            self._keep(self._names[neuron], neuron.call(neuron.call.u))
