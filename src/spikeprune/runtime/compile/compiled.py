"""`compile`: a pruned spiking network as a program of sparse native layers that keeps no state between calls."""

import threading
from typing import Any

import torch
from torch import Tensor, nn

from spikeprune.core.errors import InvalidValue
from spikeprune.runtime import native
from spikeprune.runtime.compile.layers import Network
from spikeprune.runtime.compile.lower import lower
from spikeprune.runtime.compile.program import declare
from spikeprune.runtime.compile.schedule import Builder, Schedule, packings


class CompiledSNN:
    """A compiled network: call it like the model it was made from."""

    def __init__(self, network: Network, precision: str = "fp32", engines: dict[int, str] | None = None) -> None:
        self.network = network
        self.precision = precision
        library = native.library("engine")
        self.library = None if library is None else declare(library)
        self._engines = engines
        self._lock = threading.Lock()
        self._schedules: dict[Any, Schedule] = {}

    def _schedule(self, still: bool, N: int, watched: frozenset[int] = frozenset()) -> Schedule:
        key = (still, watched)
        with self._lock:
            if key not in self._schedules:
                engines = self._engines or self._choose(still)
                self._schedules[key] = Builder(self.network, self.library, engines, still, set(watched)).build()
            return self._schedules[key]

    def _choose(self, still: bool) -> dict[int, str]:
        static = self.network.static(still)
        packed = packings(self.network, static)
        out = {}
        for place, layer in enumerate(self.network.layers):
            if layer.kind == "conv":
                src = layer.inputs[0]
                out[place] = "lookup" if src in packed else "real"
        return out

    def _input(self, x: Tensor) -> tuple[Tensor, bool, int, int]:
        network = self.network
        dims = len(network.input_shape)
        if x.dim() == dims + 1 and network.still and tuple(x.shape[1:]) == network.input_shape:
            return x, True, network.T, x.shape[0]
        if x.dim() == dims + 2 and tuple(x.shape[2:]) == network.input_shape:
            return x, False, x.shape[0], x.shape[1]
        shape = ", ".join(map(str, network.input_shape))
        raise InvalidValue(
            f"this network takes [T, N, {shape}]{f' or [N, {shape}]' if network.still else ''}, got {list(x.shape)}"
        )

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        x, still, T, N = self._input(x.float())
        values = self._schedule(still, N).run(x, T, N, torch.get_num_threads())
        return values[self.network.output]

    @torch.no_grad()
    def trace(self, x: Tensor) -> dict[str, Tensor]:
        x, still, T, N = self._input(x.float())
        neurons = {layer.name: layer.output for layer in self.network.layers if layer.kind == "neuron"}
        values = self._schedule(still, N, frozenset(neurons.values())).run(x, T, N, torch.get_num_threads())
        return {name: values[value] for name, value in neurons.items()}


def compile(model: nn.Module, example: Tensor, precision: str = "fp32") -> CompiledSNN:
    return CompiledSNN(lower(model, example), precision)
