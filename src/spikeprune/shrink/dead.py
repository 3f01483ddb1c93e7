"""Finds the channels of a masked network that can be removed without changing its result.

Forward: a channel whose filter is masked is constant, 0 if its normalisation's scale and shift are masked too, and a
neuron that gets a constant too small to ever reach its threshold is silent. Backward: a channel that no layer has an
unmasked weight for is not read. A channel goes when nobody reads anything but 0 from it.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from spikeprune.model.adapter import Adapter, NeuronParams
from spikeprune.model.channels import ChannelMap
from spikeprune.model.operations import is_gate
from spikeprune.model.replay import is_elementwise, replay, rerun
from spikeprune.model.trace import Node
from spikeprune.model.weight_axes import WeightAxes, by_group

_UNKNOWN = float("nan")
_MARK = 1e300  # stands for nan while values are moved around: nan does not equal itself
_PRODUCTS = {"mul", "mul_", "__mul__", "__rmul__", "__imul__"}


class Constants:
    """For every node of the graph the constant value of each channel, nan where it varies.

    Args:
        table: the channels of the masked model, in eval mode.
        model: the masked model.
        masks: parameter name -> bool, True = alive.
        adapter: to ask neurons whether a constant input makes them fire.
    """

    def __init__(
        self, table: ChannelMap, model: nn.Module, masks: Mapping[str, Tensor], adapter: Adapter | None
    ) -> None:
        self.table, self.adapter = table, adapter
        self.parameters = dict(model.named_parameters())
        self.names = {id(p): name for name, p in model.named_parameters()}
        self.masks = {name: mask.cpu() for name, mask in masks.items()}
        self.values: dict[int, Tensor | None] = {}
        self.nonzero_columns: dict[tuple[str, int], Tensor] = {}  # what reaches each layer, over all its calls
        for node in table.graph.nodes:
            with torch.no_grad():
                self.values[node.index] = self._visit(node)

    def alive(self, weight: str) -> Tensor:
        """The mask of a weight, all True if it has none."""
        mask = self.masks.get(weight)
        return torch.ones(self.parameters[weight].shape, dtype=torch.bool) if mask is None else mask

    def _visit(self, node: Node) -> Tensor | None:
        layout = self.table.layouts[node.index]
        inputs = [self.values[i] for i in node.inputs]
        if node.kind in ("conv", "linear") and layout is not None:
            return self._layer(node, inputs[0], layout)
        if layout is None:
            return None
        unknown = torch.full(layout.shape, _UNKNOWN, dtype=torch.float64)
        known = [self._not_known(i, unknown) if v is None else v for i, v in zip(node.inputs, inputs, strict=True)]
        if node.kind in ("norm", "neuron", "select") and node.module is not None:
            before = self.table.layouts[node.inputs[0]]
            assert before is not None
            known[0] = known[0].expand(torch.broadcast_shapes(known[0].shape, before.shape))
        if node.kind == "norm":
            return self._norm(node, known[0])
        if node.kind == "neuron":
            return self._neuron(node, known[0])
        if node.kind == "pool":  # padding mixes in zeros, so only 0 is sure to stay
            return torch.where(known[0] == 0, 0.0, _UNKNOWN)
        if node.kind == "select" and is_gate(node.module):
            return known[0].index_select(known[0].dim() - 3, node.module.index.cpu())
        if node.kind == "identity" and node.module is not None:
            return known[0]
        if is_elementwise(node):
            return self._elementwise(node, known)
        if node.kind == "write":
            return self._write(node, known, layout)
        filled = [
            torch.nan_to_num(value, nan=_MARK).expand(self.table.graph.nodes[i].shape)
            for i, value in zip(node.inputs, known, strict=True)
        ]
        moved = self._mixed(node, known, layout) if node.kind == "other" else replay(node, filled)
        if moved is None:
            return unknown
        moved = torch.where(moved == _MARK, _UNKNOWN, moved).double()
        return torch.where(moved == 0, 0.0, _UNKNOWN) if node.name == "sum" else moved

    def _mixed(self, node: Node, known: list[Tensor], layout: Tensor) -> Tensor | None:
        """The values that come out of a function that does not mix channels; None if they cannot be computed.

        `keeps_channels` lists these functions.
        """
        value = known[0]
        if node.name == "pad":
            positional, named = node.arguments
            zeros = (positional[3] if len(positional) > 3 else named.get("value")) in (None, 0)
            return torch.zeros_like(value, dtype=torch.float64).masked_fill(value != 0, _MARK) if zeros else None
        others = iter(self.table.graph.constants.get(node.index, ()))
        try:
            whole = value.expand(self.table.graph.nodes[node.inputs[0]].shape)
            places = enumerate(node.arguments[0])
            args = [whole if i in node.traced else next(others).double().cpu() if a is None else a for i, a in places]
            mixed = getattr(torch, node.name.strip("_"))(*args)
        except (StopIteration, RuntimeError, TypeError, AttributeError):
            return None
        return torch.nan_to_num(mixed, nan=_MARK)

    def _not_known(self, index: int, whole: Tensor) -> Tensor:
        layout, shape = self.table.layouts[index], self.table.graph.nodes[index].shape
        return whole if layout is not None else torch.full((1,) * len(shape), _UNKNOWN, dtype=torch.float64)

    def _layer(self, node: Node, source: Tensor | None, layout: Tensor) -> Tensor:
        axes = self.table.axes.get(node.index)
        if not isinstance(axes, WeightAxes):
            return torch.full(layout.shape, _UNKNOWN, dtype=torch.float64)
        weight = self.alive(axes.weight)
        weight = weight if axes.outputs == 0 else weight.movedim(1, 0)
        joined = weight.flatten(2).any(-1) if weight.dim() > 2 else weight  # [outputs, inputs of a group]
        width = joined.shape[1] * axes.groups
        nonzero = torch.ones(width, dtype=torch.bool)
        if source is not None and source.numel() in (1, width):
            nonzero = (source.reshape(-1) != 0).expand(width)
        if axes.groups == 1:  # what a grouped convolution reads goes with what it writes
            key = (axes.weight, axes.inputs)
            self.nonzero_columns[key] = self.nonzero_columns.get(key, torch.zeros_like(nonzero)) | nonzero
        meets = by_group(joined.flatten(), axes.groups).view(axes.groups, -1, joined.shape[1])
        varies = (meets & by_group(nonzero, axes.groups).unsqueeze(1)).any(-1).flatten()
        constant = torch.zeros(len(varies), dtype=torch.float64)
        if axes.bias is not None:
            constant = self.parameters[axes.bias].detach().double().cpu() * self.alive(axes.bias)
            if node.module is None:  # whether the function adds the bias is not known
                constant = torch.where(constant == 0, 0.0, _UNKNOWN)
        return torch.where(varies, _UNKNOWN, constant).view(layout.shape)

    def _norm(self, node: Node, source: Tensor) -> Tensor:
        module: Any = node.module
        out = source
        if not bool(source.isnan().all()):
            reference = next(t for t in (*module.parameters(), *module.buffers(), source) if t.is_floating_point())
            # Channel by channel in eval mode, so unknown channels stay nan and leave the others alone.
            out = module.forward(source.to(reference)).double().cpu()
        if module.weight is not None:
            gone = ~self.alive(self.names[id(module.weight)])
            shift = torch.zeros(len(gone), dtype=torch.float64)
            if module.bias is not None:
                shift = module.bias.detach().double().cpu() * self.alive(self.names[id(module.bias)])
            axis = next((d for d, size in enumerate(source.shape) if size > 1), None)
            shape = [1] * source.dim()
            if axis is not None:
                shape[axis] = -1
            out = torch.where(gone.view(shape), shift.view(shape), out)
        return out

    def _neuron(self, node: Node, source: Tensor) -> Tensor:
        if node.module is None:
            return self._found(node, source)
        calm = ~self._excited(node, source)
        silent = (source == 0) & calm
        params = self.adapter.describe(node.module) if self.adapter is not None and node.module is not None else None
        if params is not None:
            silent |= stays_silent(params, source) & calm
        self._heard(node, ~silent)
        return torch.where(silent, 0.0, _UNKNOWN)

    def _heard(self, node: Node, fired: Tensor) -> None:
        """Notes the entries that a neuron's own recurrent weights read: its spikes."""
        for weight, (neuron, _) in self.table.graph.inner.items():
            if neuron == node.name and (weight, 1) in self.table.dims:
                known = self.nonzero_columns.get((weight, 1))
                self.nonzero_columns[weight, 1] = fired.flatten() if known is None else known | fired.flatten()

    def _excited(self, node: Node, source: Tensor) -> Tensor:
        """True for the channels whose input a neuron's own recurrent weights, or their bias, may change."""
        excited = torch.zeros_like(source, dtype=torch.bool)
        for weight, (neuron, _) in self.table.graph.inner.items():
            if neuron != node.name or (weight, 1) not in self.table.dims:
                continue
            rows = self.alive(weight).any(1)
            bias = self.parameters.get(weight.removesuffix("weight") + "bias")
            if bias is not None:
                rows = rows | (bias.detach().cpu() * self.alive(self.names[id(bias)]) != 0)
            excited |= rows.view(source.shape) if rows.numel() == source.numel() else bool(rows.any())
        return excited

    def _found(self, node: Node, u: Tensor) -> Tensor:
        """Output of a neuron that was found by its spike function: 0 where that gives 0 at a known u, else unknown."""
        neuron = self.table.graph.spikes.get(node.name)
        if neuron is not None and neuron.ends is not None:
            return self._straight(node, neuron.ends, u)
        if neuron is None or neuron.function is None:
            return torch.full_like(u, _UNKNOWN)
        spikes = neuron.function(torch.nan_to_num(u, nan=0.0)).double().cpu()
        fires, shape = u.isnan() | (spikes != 0), self.table.layouts[node.index]
        for dim, size in enumerate(() if shape is None else shape.shape):
            if size == 1:  # silent is silent at every time step
                fires = fires.any(dim, keepdim=True)
        return torch.where(fires, _UNKNOWN, 0.0)

    def _straight(self, node: Node, function: str, u: Tensor) -> Tensor:
        """The values of `spikes + smooth - smooth.detach()`: known where both parts are known, else `_UNKNOWN`."""
        values = [self.values[i] for i in node.inputs]
        known = [torch.full_like(u, _UNKNOWN) if value is None else value for value in values]
        result = rerun(replace(node, name=function), known)
        if not isinstance(result, Tensor):
            return torch.full_like(u, _UNKNOWN)
        return torch.where(result.abs() < 1e-4, 0.0, _UNKNOWN).double()  # nan compares false

    def _write(self, node: Node, known: list[Tensor], layout: Tensor) -> Tensor:
        """The constant values of a tensor after a write into it."""
        first = node.arguments[0][0]
        before = known[0] if len(known) > 1 else None if first is None else torch.tensor(float(first)).double()
        index = node.arguments[0][1] if node.name == "__setitem__" else slice(None)
        if before is None:
            return torch.full(layout.shape, _UNKNOWN, dtype=torch.float64)
        shapes = [self.table.graph.nodes[i].shape for i in node.inputs]
        filled = torch.nan_to_num(before.double(), nan=_MARK).expand(node.shape).clone()
        filled[index] = torch.nan_to_num(known[-1].double(), nan=_MARK).expand(shapes[-1])
        for dim, size in enumerate(layout.shape):
            if size == 1:
                low, high = filled.amin(dim, keepdim=True), filled.amax(dim, keepdim=True)
                filled = torch.where(low == high, low, _MARK)
        return torch.where(filled == _MARK, _UNKNOWN, filled)

    def _elementwise(self, node: Node, known: list[Tensor]) -> Tensor:
        result = rerun(node, known)
        if not isinstance(result, Tensor):
            return torch.full_like(known[0], _UNKNOWN)
        # A comparison with nan gives False, which is no more known than what was compared.
        compared = [] if result.is_floating_point() else known
        result = result.double()
        for value in compared:
            result = torch.where(value.isnan(), _UNKNOWN, result)
        for value in known if node.name in _PRODUCTS else []:
            result = torch.where(value == 0, 0.0, result)
        return result


def stays_silent(params: NeuronParams, current: Tensor) -> Tensor:
    """Whether a neuron never fires under constant input, for any number of steps. An input of nan counts as firing.

    The potential moves monotonically from v_reset (or 0) to the fixed point v_rest + gain * x / (1 - decay). If both
    are below the threshold, the neuron never fires.
    """
    decay, gain = (torch.as_tensor(v).detach().double().cpu() for v in (params.decay, params.gain))
    threshold, rest = (torch.as_tensor(v).detach().double().cpu() for v in (params.v_threshold, params.v_rest))
    start = torch.as_tensor(0.0 if params.v_reset is None else params.v_reset).detach().double().cpu()
    push = gain * current
    end = torch.where(decay < 1, rest + push / (1 - decay).clamp_min(1e-300), torch.where(push <= 0, start, torch.inf))
    return torch.broadcast_to((end < threshold) & (start < threshold) & (decay >= 0), current.shape)


def removable(table: ChannelMap, constants: Constants, stay: Tensor | None = None) -> Tensor:
    """For each atom, whether it can be removed; `stay` holds atoms that must not be.

    A layer, and what leaves a gate, keeps at least one channel. The stream before a gate stays as wide as it is
    written, because such networks are cut at the gate.
    """
    roots = table.roots(torch.arange(table.size))
    gone = torch.ones(table.size, dtype=torch.bool)
    gone[sorted(table.whole())] = False
    if stay is not None:
        gone[roots[stay]] = False
    written = torch.zeros(table.size, dtype=torch.bool)
    for (tensor, dim), (role, atoms) in table.dims.items():
        if role == "out" and tensor in constants.parameters and constants.parameters[tensor].dim() > 1:
            written[roots[atoms[constants.alive(tensor).movedim(dim, 0).flatten(1).any(1)]]] = True
    for source, _ in table.gates.values():
        gone[roots[source]] &= ~written[roots[source]]
    while True:
        before = gone.clone()
        for (tensor, dim), (role, atoms) in table.dims.items():
            if role == "in" and (tensor, dim) in constants.nonzero_columns:
                alive = constants.alive(tensor)
                rows = table.dims.get((tensor, 1 - dim))
                if rows is not None:  # rows that go need no columns
                    alive = alive[~gone[roots[rows[1]]]] if dim == 1 else alive[:, ~gone[roots[rows[1]]]]
                used = alive.movedim(dim, 0).flatten(1).any(1)
                gone[roots[atoms[used & constants.nonzero_columns[tensor, dim]]]] = False
        for name, (source, behind) in table.gates.items():
            passed = source[_gate_index(table, name)]
            gone[roots[passed[~gone[roots[behind]]]]] = False
        if torch.equal(gone, before):
            # Only ever kept from here on: bring back one channel where all would go, then look again.
            for _, (role, atoms) in table.dims.items():
                if role in ("out", "norm", "gate") and bool(gone[roots[atoms]].all()):
                    gone[roots[atoms[0]]] = False
            for _, behind in table.gates.values():
                if bool(gone[roots[behind]].all()):
                    gone[roots[behind[0]]] = False
            if torch.equal(gone, before):
                return gone[roots]


def _gate_index(table: ChannelMap, name: str) -> Tensor:
    gate = next(node.module for node in table.graph.nodes if node.name == name)
    assert is_gate(gate)
    return gate.index.cpu()
