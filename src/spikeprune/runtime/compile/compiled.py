"""`compile`: a pruned spiking network as a program of sparse native layers that keeps no state between calls."""

import math
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from spikeprune.core.errors import InvalidValue
from spikeprune.runtime import native
from spikeprune.runtime.compile import cost, store
from spikeprune.runtime.compile.builder import Builder
from spikeprune.runtime.compile.lower import lower
from spikeprune.runtime.compile.network import LoweredNetwork
from spikeprune.runtime.compile.packing import packings
from spikeprune.runtime.compile.program import CHUNK
from spikeprune.runtime.compile.schedule import EngineSchedule
from spikeprune.runtime.compile.weighted import quantize
from spikeprune.upkeep.attachment import check_obeyed

Precision = Literal["fp32", "int16"]
_HOME = os.getpid()


@dataclass(frozen=True)
class PlanRow:
    """One layer of a plan. Times are estimates in milliseconds for a batch on this machine, None where not needed."""

    layer: str
    kind: str
    engine: str
    sparsity: float | None
    sparse_ms: float | None
    dense_ms: float | None


class EnginePlan(tuple[PlanRow, ...]):
    """The engine of every layer; prints as a table."""

    def __str__(self) -> str:
        def ms(value: float | None) -> str:
            return "" if value is None else f"{value:.3f}"

        head = f"{'layer':<28}{'kind':<9}{'engine':<30}{'sparsity':>9}{'sparse ms':>11}{'dense ms':>10}"
        lines = [
            f"{row.layer:<28}{row.kind:<9}{row.engine:<30}"
            f"{'' if row.sparsity is None else f'{row.sparsity:.4f}':>9}{ms(row.sparse_ms):>11}{ms(row.dense_ms):>10}"
            for row in self
        ]
        return "\n".join([head, *lines])


class CompiledSNN:
    """A compiled network: call it like the model it was made from, in eval mode.

    It keeps no state between calls, may be called from several threads, and takes any batch size, and any T where it
    is given a sequence.

    Args:
        network: what `lower` or `store.load` gives.
        precision: what the weights were rounded for, "fp32" or "int16".
        engine: runs every conv and linear layer that can on this engine, whatever the cost model says; "dense" is the
            opponent in benchmarks.

    Examples:
        >>> fast = sp.compile(model.eval(), data[0][0])
        >>> fast(data[0][0]).shape  # [T, N, classes], as the model gives it
        torch.Size([3, 4, 5])
        >>> fast.save("net.snn")
    """

    def __init__(self, network: LoweredNetwork, precision: str = "fp32", engine: str | None = None) -> None:
        self.network = network
        self.precision = precision
        self._engine = engine
        self._library = native.library("engine")
        self._lock = threading.Lock()
        self._schedules: dict[tuple[bool, int, bool, int], EngineSchedule] = {}
        self._choices: dict[tuple[bool, int, int], dict[int, cost.Choice]] = {}

    def __call__(self, x: Tensor) -> Tensor:
        """The model's output for x, an image batch [N, C, H, W] or a sequence [T, N, C, H, W].

        Raises: InvalidValue if the shape is not the compiled model's.
        """
        x, still, T, N = self._input(x)
        with torch.no_grad():
            values = self._schedule(still, T, N).run(x, T, N, torch.get_num_threads())
        return self.network.returned(values, still)

    def trace(self, x: Tensor) -> dict[str, Tensor]:
        """The spikes of every neuron, by its name as in `named_modules`, shaped as the model gives them."""
        x, still, T, N = self._input(x)
        with torch.no_grad():
            values = self._schedule(still, T, N, watch=True).run(x, T, N, torch.get_num_threads())
        return {layer.name: values[layer.output] for layer in self.network.layers if layer.op.fires}

    def plan(self, N: int = 1) -> EnginePlan:
        """Which engine runs each layer for batches of about N images, and the estimated times that decided."""
        still, T = self.network.still, self.network.T
        schedule = self._schedule(still, T, N)
        choices = self._choices.get((still, T, _regime(N)), {})

        def ms(value: float) -> float | None:
            return value / 1e6 if math.isfinite(value) and value > 0 else None

        rows: list[PlanRow] = []
        for place, layer in enumerate(self.network.layers):
            choice = choices.get(place)
            weight = layer.tensors.get("weight")
            engine = schedule.notes.get(place, "PyTorch")
            if self._library is None:
                engine = "PyTorch (no C++ compiler)"
            elif layer.output in self.network.static(still):
                engine = "PyTorch, once per image"
            rows.append(
                PlanRow(
                    layer.name, layer.kind, engine,
                    None if weight is None else 1 - int(torch.count_nonzero(weight)) / weight.numel(),
                    None if choice is None else ms(choice.sparse),
                    None if choice is None else ms(choice.dense),
                )
            )  # fmt: skip
        return EnginePlan(rows)

    def save(self, path: str | os.PathLike[str], facts: Mapping[str, str] | None = None) -> None:
        """Writes one checksummed file at exactly `path`; `load` reads it, on any machine.

        Args:
            facts: further entries of the file's metadata, such as a certificate.
        """
        store.save(path, self.network, self.precision, facts)

    def _input(self, x: Tensor) -> tuple[Tensor, bool, int, int]:
        network = self.network
        dims = len(network.input_shape)
        x = x.detach().to("cpu", torch.float32)
        if x.dim() == dims + 1 and network.still and tuple(x.shape[1:]) == network.input_shape and len(x):
            return x, True, network.T, x.shape[0]
        given = list(x.shape)
        x = network.layout.inside(x) if x.dim() == dims + 2 else x
        if x.dim() == dims + 2 and tuple(x.shape[2:]) == network.input_shape and x.numel():
            if network.layout.fixed and len(x) != network.T:
                raise InvalidValue(
                    f"this compiled model takes T = {network.T} steps, got {len(x)}: the model holds numbers that "
                    "depend on T; compile it with an example of that length"
                )
            return x, False, x.shape[0], x.shape[1]
        shape = ", ".join(map(str, network.input_shape))
        forms = [f"[N, {shape}]"] * network.still + [f"[{network.layout.said(shape)}]"]
        raise InvalidValue(f"this compiled model takes {' or '.join(forms)}, got {given}")

    def _schedule(self, still: bool, T: int, N: int, watch: bool = False) -> EngineSchedule:
        if os.getpid() != _HOME:  # PyTorch's threads do not come along into a fork, and a call would wait for them
            torch.set_num_threads(1)
        regime = _regime(N)
        key = (still, T, watch, regime)
        with self._lock:
            if key not in self._schedules:
                engines: dict[int, str] = {}
                if self._engine is not None:
                    engines = dict.fromkeys(range(len(self.network.layers)), self._engine)
                elif self._library is not None:
                    choices = cost.choose(self.network, self._library, still, T, regime)
                    self._choices[still, T, regime] = choices
                    engines = {place: choice.engine for place, choice in choices.items()}
                watched = {layer.output for layer in self.network.layers if layer.op.fires} if watch else set()
                self._schedules[key] = Builder(self.network, self._library, engines, still, watched).build()
            return self._schedules[key]


def _regime(N: int) -> int:
    """The batch size that a plan is made for: 1, or a full chunk of images."""
    return 1 if N < CHUNK // 2 else CHUNK


def compile(model: nn.Module, example: Tensor, precision: Precision = "fp32") -> CompiledSNN:
    """A fast inference version of a pruned spiking model: same spikes, same output, zeros cost nothing.

    Folds BatchNorm, runs a layer once if its result is the same at every step, keeps spikes packed in bits, and chooses
    for each layer between sparse and dense kernels by a cost model measured on this machine.

    Args:
        model: multi-step, with neurons that an adapter knows; left as it was. Pruned weights are zeros.
        example: an input as the model takes it, [N, C, H, W] or [T, N, C, H, W]; small is enough.
        precision: "fp32" gives the dense model's spikes except where rounding breaks a tie at the threshold; "int16"
            rounds weights per output channel so that every sum fits 16 bits whatever the spikes are.

    Returns: a callable without state; see `CompiledSNN`.

    Raises: InvalidValue for an unknown precision, for a layer that cannot be compiled, which it names, and if a weight
        that an attached Pruner holds at 0 is not 0.

    Examples:
        >>> fast = sp.compile(model.eval(), data[0][0])
        >>> with torch.no_grad():
        ...     torch.allclose(fast(data[0][0]), model(data[0][0]), atol=1e-4)
        True
    """
    if precision not in ("fp32", "int16"):
        raise InvalidValue(f"precision must be 'fp32' or 'int16', got {precision!r}")
    check_obeyed(model)
    network = lower(model, example)
    if precision == "int16":
        _quantize(network)
    return CompiledSNN(network, precision)


def load(path: str | os.PathLike[str]) -> CompiledSNN:
    """The compiled model that `.save(path)` wrote.

    Raises: InvalidValue for a missing, cut, changed or foreign file.

    Examples:
        >>> sp.compile(model.eval(), data[0][0]).save("net.snn")
        >>> sp.load("net.snn")(data[0][0]).shape
        torch.Size([3, 4, 5])
    """
    network, precision = store.load(path)
    return CompiledSNN(network, precision)


def _quantize(network: LoweredNetwork) -> None:
    """Rounds the weights of every layer whose input is spikes, or a mean of few spikes."""
    packed = packings(network)
    reshaped = network.reshaped()
    for place, layer in enumerate(network.layers):
        source = layer.inputs[0]
        planes = packed.get(source) or packed.get(reshaped.get(source, source))
        if layer.op.weighted and planes is not None:
            units = 1 if len(planes.planes) == 1 else round(1 / planes.planes[0][0])
            network.layers[place] = quantize(layer, units)


__all__ = ["CompiledSNN", "EnginePlan", "PlanRow", "Precision", "compile", "load"]
