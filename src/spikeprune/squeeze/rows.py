"""Rows of a trained network: what enters a layer, and how near the neuron behind it stands to its threshold.

A row is one time step, one image and one position. Rows are drawn while the dense network runs: only their patches are
unfolded, so that no layer's activations are ever held as a whole. Every row of a layer has the same chance (a draw
without replacement in each call), so sums over the drawn rows, divided by the share drawn, estimate sums over all rows
without bias.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from spikeprune.core.errors import InvalidValue
from spikeprune.core.statistic import as_channels, spread
from spikeprune.model.adapter import Adapter
from spikeprune.model.arguments import Arguments, on_call, on_result
from spikeprune.model.discover import SpikeNeuron
from spikeprune.model.examples import undisturbed
from spikeprune.model.pairing import Pairing
from spikeprune.model.trace import Graph
from spikeprune.squeeze.ear import Hidden
from spikeprune.squeeze.leak import Leak, leak_of

Derivative = Callable[[nn.Module, Tensor], Tensor]


@final
@dataclass
class Rows:
    """The drawn rows of one weight.

    Attributes:
        x: inputs, [G, I, R] for G groups; bytes where all values are small whole numbers, such as spikes.
        c: surrogate'(v_pre - v_threshold) of the neuron that it feeds, [O, R]; None where it feeds none, or where
            its rows cannot be told at the neuron.
        available: how many rows the data held.
        note: why `c` is missing, if it is; "" otherwise.
        counts: how many rows each one stands for, [R], where they were not drawn with equal chances.
    """

    x: Tensor
    c: Tensor | None
    available: int
    note: str = ""
    counts: Tensor | None = None

    @property
    def silent(self) -> bool:
        """Whether nothing but zeros came in."""
        return not bool(self.x.any())

    @property
    def weighable(self) -> bool:
        """Whether its derivatives, if it has any, tell rows apart: all finite, and not all 0."""
        return self.c is None or (bool(torch.isfinite(self.c).all()) and bool((self.c > 0).any()))


def rows_per_forward(graph: Graph, outputs: Mapping[str, int]) -> dict[str, int]:
    """Weight name -> rows of one forward as it was traced, over all calls. `outputs` is O of each weight."""
    found: dict[str, int] = {}
    for node in graph.nodes:
        if node.weight is not None and node.weight in outputs:
            numel = 1
            for size in node.shape:
                numel *= size
            found[node.weight] = found.get(node.weight, 0) + numel // outputs[node.weight]
    return found


def is_solvable(module: nn.Module) -> bool:
    """Whether a layer's output is a product of its weight with rows of its input."""
    return isinstance(module, nn.Linear) or (isinstance(module, _ConvNd) and not module.transposed)


def patches(layer: nn.Module, x: Tensor, space: Sequence[int], index: Tensor) -> Tensor:
    """The inputs of some output positions of a Linear or Conv layer, [R, G, I].

    Args:
        x: the layer's input, any leading dimensions.
        space: the output's spatial sizes; () for Linear.
        index: which rows, of (leading dimensions x positions) in order.
    """
    if not isinstance(layer, _ConvNd):
        return x.reshape(-1, x.shape[-1])[index][:, None]
    dims = len(layer.kernel_size)
    x = x.reshape(-1, *x.shape[-dims - 1 :])
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)  # 'same' too
    count = 1
    for size in space:
        count *= size
    image, position = index // count, index % count
    place = torch.zeros(len(index), 1, dtype=torch.long, device=x.device)  # of every kernel tap, in the flattened map
    for d in range(dims):
        later = 1
        for size in space[d + 1 :]:
            later *= size
        corner = (position // later % space[d]) * layer.stride[d]
        taps = torch.arange(layer.kernel_size[d], device=x.device) * layer.dilation[d]
        at = corner[:, None] + taps
        place = (place[:, :, None] * x.shape[2 + d] + at[:, None, :]).flatten(1)
    taken = x.flatten(2)[image[:, None], :, place]  # [R, taps, C]
    return taken.movedim(1, 2).reshape(len(index), layer.groups, -1)


@final
@dataclass
class _Call:
    """The rows drawn in one call of a layer, and the sum of their derivatives over the neuron's time steps."""

    index: Tensor
    rows: int
    space: tuple[int, ...]
    x: Tensor
    c: Tensor | None = None
    steps: int = 0


@final
@dataclass
class _Source:
    """A weight whose rows are being drawn."""

    modules: list[nn.Module]
    outputs: int
    share: float
    generator: torch.Generator
    neuron: nn.Module | None
    leak: Leak | None = None
    seen: int = 0
    drawn: int = 0
    note: str = ""
    open: list[_Call] = field(default_factory=list[_Call])
    done: list[_Call] = field(default_factory=list[_Call])

    def draw(self, rows: int) -> Tensor:
        """The indices of the rows that are taken of one call, so that `share` of all calls' rows are taken."""
        self.seen += rows
        count = min(rows, int(self.share * self.seen + 1e-9) - self.drawn)
        self.drawn += max(count, 0)
        if count <= 0:
            return torch.empty(0, dtype=torch.long)
        return torch.randperm(rows, generator=self.generator)[:count].sort().values

    def gathered(self, layer: nn.Module, x: Tensor) -> Tensor:
        """The input of a call, as the membrane behind gathers it if that was asked for."""
        found = None if self.leak is None else self.leak.gather(layer, x)
        if self.leak is not None and found is None:
            self.leak, self.note = None, "its input does not show the time steps: inputs as they are"
        return x if found is None else found

    def close(self) -> None:
        """No further time step of the neuron belongs to the calls so far."""
        for call in self.open:
            if len(call.index):
                call.x = _compact(call.x)
                self.done.append(call)
        self.open = []

    def lose(self, why: str) -> None:
        """The rows cannot be told at the neuron, so all weigh alike."""
        self.neuron, self.note = None, why

    def rows(self) -> Rows:
        """All rows that were drawn."""
        x = torch.cat([call.x.float() if call.x.dtype != torch.uint8 else call.x for call in self.done])
        found = [call.c for call in self.done if call.c is not None]
        c = torch.cat(found).T.contiguous() if self.neuron is not None and len(found) == len(self.done) else None
        note = self.note or ("" if c is not None or self.leak is not None else "its neuron was not called behind it")
        return Rows(x.permute(1, 2, 0).contiguous(), c, self.seen, note)


@final
@dataclass(frozen=True)
class _Potential:
    """One time step `t` of a neuron's call over so many `steps`: u = v_pre - v_threshold, [N, C, *space].

    Where `neuron` is None, `u` holds the derivative already.
    """

    neuron: nn.Module | None
    u: Tensor
    t: int
    steps: int


@final
class Drawing:
    """Hooks that draw rows while they are on the model.

    Args:
        layers: weight name -> the modules that use it.
        pairs: weight name -> the neuron that it feeds.
        shares: weight name -> share of its rows to draw, in (0, 1].
        derivative: (neuron, u) -> surrogate'(u); None draws inputs only.
        leaky: whether inputs are drawn as the membrane behind the layer gathers them.
    """

    def __init__(
        self,
        model: nn.Module,
        adapter: Adapter | None,
        layers: Mapping[str, list[nn.Module]],
        pairs: Mapping[str, Pairing],
        shares: Mapping[str, float],
        derivative: Derivative | None,
        seed: int,
        leaky: bool = False,
    ) -> None:
        modules = dict(model.named_modules())
        self.adapter, self.derivative = adapter, derivative
        self.sources: dict[str, _Source] = {}
        self._by_neuron: dict[nn.Module, list[_Source]] = {}
        for number, (name, used) in enumerate(layers.items()):
            pairing = pairs.get(name)
            neuron = None
            if pairing is not None and pairing.neuron is not None:
                neuron = modules.get(pairing.neuron) if pairing.found is None else pairing.found
            outputs = int(used[0].weight.shape[0])  # type: ignore[union-attr]
            generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
            source = _Source(used, outputs, shares[name], generator, None)
            if leaky:
                source.leak = leak_of(adapter, neuron)
                missing = "feeds no neuron" if neuron is None else "its neuron has no plain leak: inputs as they are"
                source.note = missing if source.leak is None else ""
            elif derivative is None:
                source.note = "all rows weigh alike"
            elif neuron is None:
                source.note = "feeds no neuron"
            elif pairing is not None and pairing.joined:
                source.note = "reaches its neuron through a cat, so its channels there cannot be told"
            else:
                source.neuron = neuron
                self._by_neuron.setdefault(neuron, []).append(source)
            self.sources[name] = source
        self._handles: list[Any] = []
        self.hidden: Hidden = nullcontext

    def __enter__(self) -> "Drawing":
        for source in self.sources.values():
            for module in source.modules:
                self._handles.append(on_result(module, self._layer(source)))
        for neuron in self._by_neuron:
            if not isinstance(neuron, SpikeNeuron):
                self._handles.append(on_call(neuron, self._neuron))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _layer(self, source: _Source) -> Callable[..., None]:
        def see(layer: nn.Module, given: Arguments, output: Tensor) -> None:
            with torch.no_grad(), torch._C.DisableTorchFunction():
                if any(call.steps for call in source.open):
                    source.close()
                x = source.gathered(layer, given.first)
                rows = output.numel() // source.outputs
                dims = len(layer.kernel_size) if isinstance(layer, _ConvNd) else 0
                space = tuple(output.shape[output.ndim - dims :])
                index = source.draw(rows).to(x.device)
                taken = patches(layer, x, space, index) if len(index) else x.new_empty(0)
                source.open.append(_Call(index, rows, space, taken))

        return see

    def _neuron(self, neuron: nn.Module, given: Arguments) -> None:
        args = given.values
        waiting = self._waiting(neuron)
        if not waiting:
            return
        assert self.adapter is not None
        with torch.no_grad(), torch.autocast(args[0].device.type, enabled=False), self.hidden():
            steps = args[0].shape[0] if self.adapter.multi_step(neuron) else 1
            for t, u in enumerate(self.adapter.potentials(neuron, args)):
                for source, call in waiting:
                    self._gather(source, call, _Potential(neuron, u.float(), t, steps))

    def hear(self, neuron: SpikeNeuron) -> None:
        """A spike function was called, which is no module's forward."""
        waiting = self._waiting(neuron) if neuron in self._by_neuron and neuron.call is not None else []
        if not waiting:
            return
        assert neuron.call is not None
        assert self.derivative is not None
        with torch.no_grad(), torch.autocast(neuron.call.u.device.type, enabled=False):
            # Its other arguments need not fit single rows, so the whole map goes through it.
            slope = self.derivative(neuron, neuron.call.u.detach())
            for source, call in waiting:
                whole = neuron.calls == 1 and slope.ndim == source.modules[0].weight.ndim + 1  # type: ignore[union-attr]
                whole |= neuron.calls == 1 and isinstance(source.modules[0], nn.Linear) and slope.ndim == 3
                at = slope.flatten(0, 1) if whole else slope
                self._gather(source, call, _Potential(None, at.float(), 0, 1))

    def _waiting(self, neuron: nn.Module) -> list[tuple[_Source, _Call]]:
        """The calls of layers that this call of their neuron belongs to."""
        waiting: list[tuple[_Source, _Call]] = []
        for source in self._by_neuron[neuron]:
            for call in source.open:
                call.steps += 1  # also where no row was drawn, so that the call is known to be over
                if source.neuron is not None and len(call.index):
                    waiting.append((source, call))
        return waiting

    def _gather(self, source: _Source, call: _Call, at: _Potential) -> None:
        """Adds the derivative at a call's rows."""
        assert self.derivative is not None
        last = isinstance(source.modules[0], nn.Linear)
        try:
            value = as_channels(at.u, source.outputs, last=last)
            pooled = not last and value.ndim > 2 and tuple(value.shape[2:]) != call.space
            if pooled:  # every position of a window reaches the neuron
                slope = value if at.neuron is None else self.derivative(at.neuron, value)
                value = spread(slope, (*value.shape[:2], *call.space))
        except InvalidValue:
            source.lose(f"the shape of its neuron, {tuple(at.u.shape)}, does not show its channels")
            return
        flat = value.movedim(1, -1).reshape(-1, source.outputs)
        if call.rows == at.steps * len(flat):
            own = (call.index // len(flat) == at.t).nonzero().flatten()
        elif call.rows == len(flat):  # the layer ran once for all time steps
            own = torch.arange(len(call.index), device=flat.device)
        else:
            source.lose(f"its {call.rows} rows do not match {len(flat)} positions of its neuron")
            return
        found = flat[call.index[own] % len(flat)]
        if not pooled and at.neuron is not None:
            found = self.derivative(at.neuron, found)
        if call.c is None:
            call.c = flat.new_zeros(len(call.index), source.outputs)
        call.c.index_add_(0, own, found)

    def end_batch(self) -> None:
        """Ends a batch: rows whose neuron did not run are dropped."""
        for source in self.sources.values():
            source.close()
            if source.leak is not None:
                source.leak.forget()

    def rows(self) -> dict[str, Rows]:
        """Weight name -> what was drawn; weights that were never called are missing."""
        self.end_batch()
        return {name: source.rows() for name, source in self.sources.items() if source.done}


def collect(
    model: nn.Module,
    adapter: Adapter | None,
    batches: Iterable[Tensor],
    drawing: Drawing,
    hidden: Hidden = nullcontext,
) -> dict[str, Rows]:
    """Runs the batches with the hooks of `drawing` on and returns what was drawn. Nothing of the model changes.

    Args:
        hidden: a context in which a watch over the forward does not see what we compute ourselves.
    """
    drawing.hidden = hidden
    with torch.no_grad(), drawing:
        for x in batches:
            with undisturbed(model, adapter):
                model(x)
            drawing.end_batch()
    return drawing.rows()


def _compact(x: Tensor) -> Tensor:
    """Small whole numbers as bytes, which hold them exactly in a quarter of the memory."""
    small = x.to(torch.uint8)
    return small if bool((small == x).all()) else x
