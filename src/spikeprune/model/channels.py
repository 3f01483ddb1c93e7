"""The channels of every tensor between the layers, followed through the traced graph of the user's model.

Every channel that a layer puts out is an atom. Atoms are followed through the graph by running each reshaping of
the model on a tensor of atom numbers instead of values, so flatten, view, cat, slices and time loops need no rules
of their own; an add makes its two operands' atoms one. A channel can be removed once all that its atom touches is
removed: filter rows, biases, normalisation, per-channel neuron parameters, and the columns of the layers that read it.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]
from torch.nn.modules.conv import _ConvNd  # pyright: ignore[reportPrivateUsage]

from spikeprune.model.operations import ChannelGate, is_gate
from spikeprune.model.replay import is_elementwise, replay
from spikeprune.model.trace import Graph, Node
from spikeprune.model.weight_axes import WeightAxes, by_group, keeps_channels, weight_axes

Role = Literal["out", "in", "norm", "neuron", "gate"]


class ChannelMap:
    """The atoms of every tensor between the layers, and of every dimension of the parameters and buffers.

    Args:
        graph: the model's trace.
        model: the model that was traced.
        gates: "through" to treat a `ChannelGate` as a wire; "split" to give what leaves a gate atoms of its own, so
            that a channel can be cut behind the gate and live before it.
    """

    def __init__(self, graph: Graph, model: nn.Module, gates: Literal["through", "split"] = "through") -> None:
        self.graph = graph
        self.split = gates == "split"
        self.names: dict[int, str] = {}
        self._tensors: dict[str, Tensor] = {**dict(model.named_buffers()), **dict(model.named_parameters())}
        self.axes: dict[int, WeightAxes | str] = {}  # node -> where it has its channels, or why that is unknown
        stored = model.state_dict(keep_vars=True)  # a buffer that is not stored holds state, not structure
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name in stored:
                self.names.setdefault(id(tensor), name)
        self.dims: dict[tuple[str, int], tuple[Role, Tensor]] = {}
        self.refused: dict[int, str] = {}  # atom -> why nothing that holds it can be cut
        self.fixed: set[int] = set()  # atoms of the model's input and output
        self.neurons: dict[str, Tensor] = {}
        self.norms: dict[str, Tensor] = {}
        self.gates: dict[str, tuple[Tensor, Tensor]] = {}  # name -> atoms before and behind
        self._parent: list[int] = []
        self._table: Tensor | None = None  # atom -> root, None when out of date
        self._fresh: dict[tuple[str, int], Tensor] = {}
        self.layouts: dict[int, Tensor | None] = {}
        self._leads_on = _before_layers(graph)
        merged = -1
        while merged != (merged := self._merged()):  # a union found late may make an earlier reshape readable
            for node in graph.nodes:
                self.layouts[node.index] = self._visit(node)
        for index in graph.outputs:
            layout = self.layouts[index]
            if layout is not None:
                self.fixed.update(self.roots(layout).flatten().tolist())
        self._refuse_unread()

    def _refuse_unread(self) -> None:
        """Refuses to cut layers whose outputs no layer reads: the trace has lost them, as at an indexed write."""
        read = [self.roots(atoms) for role, atoms in self.dims.values() if role == "in"]
        read += [self.roots(before) for before, _ in self.gates.values()]
        known = torch.cat([*read, torch.tensor(sorted(self.fixed_roots()), dtype=torch.long)])
        for node in self.graph.nodes:
            for dim in (0, 1):
                role, atoms = self.dims.get((node.weight or "", dim), ("in", torch.zeros(0)))
                if role == "out" and not bool(torch.isin(self.roots(atoms), known).any()):
                    self._refuse(node, [atoms], "is read where the trace cannot follow (an indexed write?)")

    @property
    def size(self) -> int:
        """The number of atoms."""
        return len(self._parent)

    # -- atoms -------------------------------------------------------------------------------------------------------

    def _merged(self) -> int:
        return sum(parent != atom for atom, parent in enumerate(self._parent)) + len(self._parent)

    def _new(self, owner: str, dim: int, count: int) -> Tensor:
        key = (owner, dim)
        if key not in self._fresh:
            first = len(self._parent)
            self._parent.extend(range(first, first + count))
            self._fresh[key] = torch.arange(first, first + count)
        return self._fresh[key]

    def roots(self, atoms: Tensor) -> Tensor:
        """For every entry the atom that stands for all that are cut together with it."""
        if self._table is None or len(self._table) != len(self._parent):
            table = torch.tensor(self._parent)
            while not torch.equal(table, table := table[table]):
                pass
            self._table, self._parent = table, table.tolist()
        return self._table[atoms]

    def _root(self, atom: int) -> int:
        while self._parent[atom] != atom:
            atom = self._parent[atom]
        return atom

    def _unite(self, a: Tensor, b: Tensor) -> None:
        a, b = torch.broadcast_tensors(self.roots(a), self.roots(b))
        differ = a != b
        if not bool(differ.any()):
            return
        for pair in torch.unique(torch.stack([a[differ], b[differ]], 1), dim=0).tolist():
            low, high = sorted((self._root(pair[0]), self._root(pair[1])))
            self._parent[high] = low
        self._table = None

    def _refuse(self, node: Node, layouts: Iterable[Tensor | None], reason: str) -> None:
        for layout in layouts:
            if layout is None:
                continue
            for atom in layout.flatten().tolist():
                if node.index in self._leads_on:
                    self.refused.setdefault(atom, f"{node.name!r} {_type(node)}{reason}")
                else:  # what happens behind the last layer is the model's output: it stays whole
                    self.fixed.add(atom)

    def fixed_roots(self) -> set[int]:
        """The roots that belong to the model's own input or output."""
        return set(self.roots(torch.tensor(sorted(self.fixed), dtype=torch.long)).tolist())

    def whole(self) -> set[int]:
        """The roots that stay whole: those of the model's input and output, and those that cannot be cut."""
        refused = self.roots(torch.tensor(sorted(self.refused), dtype=torch.long))
        return self.fixed_roots() | set(refused.tolist())

    def refusals(self) -> dict[int, str]:
        """Root -> why it cannot be cut, for all but the model's own input and output."""
        fixed = self.fixed_roots()
        found = {int(self.roots(torch.tensor(atom))): reason for atom, reason in self.refused.items()}
        return {atom: reason for atom, reason in found.items() if atom not in fixed}

    # -- nodes -------------------------------------------------------------------------------------------------------

    def _visit(self, node: Node) -> Tensor | None:
        if node.kind == "input":
            return None
        inputs = [self.layouts[i] for i in node.inputs]
        if node.kind in ("conv", "linear"):
            return self._layer(node, inputs[0])
        if all(layout is None for layout in inputs):
            return None  # nothing but the model's input so far
        if node.kind == "neuron" or (node.kind == "norm" and isinstance(node.module, _BatchNorm)):
            return self._channelwise(node, inputs)
        if node.kind == "pool":
            return self._pool(node, inputs)
        if node.kind == "select" and is_gate(node.module):
            return self._gate(node, node.module, inputs)
        if node.kind == "identity" and node.module is not None:
            return inputs[0]
        if is_elementwise(node):
            return self._elementwise(node, inputs)
        if node.kind == "write":
            return self._write(node, inputs)
        if node.kind in ("reshape", "select", "stack", "cat", "reduce"):
            return self._moved(node, inputs)
        kept = keeps_channels(node, inputs[0]) if len(inputs) == 1 and inputs[0] is not None else None
        if kept is None:
            self._refuse(node, inputs, "is not known to keep channels apart")
        return kept

    def _layer(self, node: Node, source: Tensor | None) -> Tensor | None:
        axes = self.axes.setdefault(node.index, weight_axes(node, self.names, self._tensors))
        if isinstance(axes, str):
            return self._unfollowed(node, source, axes)
        weight = self._tensors[axes.weight]
        out = self._new(axes.weight, axes.outputs, weight.shape[axes.outputs])
        if axes.groups != 1:
            if not self._by_group(node, source, axes, out):
                return self._unfollowed(node, source, f"has groups={axes.groups} and reads several channels as one")
        else:
            self._read(node, source, axes, weight.shape[axes.inputs])
        for name in (axes.weight, *axes.companions):
            self.dims[name, axes.outputs] = ("out", out)
        if axes.bias is not None:
            self.dims[axes.bias, 0] = ("out", out)
        return _along(out, axes.axis, len(node.shape))

    def _unfollowed(self, node: Node, source: Tensor | None, reason: str) -> Tensor | None:
        """Refuses to cut the inputs and outputs of a layer whose weight cannot be cut; returns its output's layout."""
        self._refuse(node, [source], reason)
        module = node.module
        width = module.out_channels if isinstance(module, _ConvNd) else node.shape[-1] if node.shape else 1
        out = self._new(f"{node.name}({node.weight})", 0, width)
        self._refuse(node, [out], reason)
        axis = -(len(module.kernel_size) + 1) if isinstance(module, _ConvNd) else -1
        return _along(out, axis, len(node.shape)) if isinstance(module, (_ConvNd, nn.Linear)) else None

    def _by_group(self, node: Node, source: Tensor | None, axes: WeightAxes, out: Tensor) -> bool:
        """Unites all channels that a group of a grouped convolution reads and writes: it is cut as a whole."""
        width = self._tensors[axes.weight].shape[1] * axes.groups
        columns = self._columns(source, axes, width, f"input of {axes.weight}")
        if columns is None:
            return False
        inside, outside = by_group(columns, axes.groups), by_group(out, axes.groups)
        self._unite(inside, inside[:, :1])
        self._unite(outside, inside[:, :1])
        return True

    def _columns(self, source: Tensor | None, axes: WeightAxes, width: int, title: str) -> Tensor | None:
        """The atoms that a layer reads, one for each of its inputs; None if it reads several channels as one."""
        if source is None:
            columns = self._new(title, axes.inputs, width)
            self.fixed.update(columns.tolist())
            return columns
        spread = source.movedim(axes.source, -1)
        if spread.numel() != spread.shape[-1] or spread.shape[-1] not in (1, width):
            return None
        return spread.reshape(-1).expand(width)

    def _read(self, node: Node, source: Tensor | None, axes: WeightAxes, width: int) -> None:
        columns = self._columns(source, axes, width, f"input of {axes.weight}")
        if columns is None:
            self._refuse(node, [source], "reads several channels as one")
            columns = self._new(f"input of {axes.weight}", axes.inputs, width)
            self.fixed.update(columns.tolist())
        known = self.dims.get((axes.weight, axes.inputs))
        if known is not None:
            self._unite(known[1], columns)
        for name in (axes.weight, *axes.companions):
            self.dims[name, axes.inputs] = ("in", columns)

    def _channelwise(self, node: Node, inputs: Sequence[Tensor | None]) -> Tensor | None:
        layout = self._united(node, inputs)
        if layout is None:
            return None
        if any(size not in (1, real) for size, real in zip(layout.shape, node.shape, strict=False)):
            self._refuse(node, [layout], "has other channels behind it than before")
            return None
        varying = [d for d, size in enumerate(layout.shape) if size > 1]
        if len(varying) > 1:
            self._refuse(node, [layout], "sees its channels spread over several dimensions")
            return layout
        # One channel leaves no dimension to tell it by; nothing can be cut there anyhow.
        axis = varying[0] - layout.dim() if varying else None
        atoms = layout.flatten()
        (self.neurons if node.kind == "neuron" else self.norms)[node.name] = atoms
        if node.module is None:  # a neuron that was found by its spike function
            return layout
        for local, tensor in [*node.module.named_parameters(), *node.module.named_buffers()]:
            if tensor.numel() < 2 or axis is None:
                continue
            if "." in local and local in dict(node.module.named_parameters()):
                if not self._recurrent(node, tensor, atoms):
                    self._refuse(node, [layout], f"holds a layer of its own, {local!r}")
                continue
            dim = _channel_dim(tensor, atoms.numel(), axis, node.kind)
            if dim is not None:
                name = self.names.get(id(tensor))
                if name is not None:
                    self.dims[name, dim] = ("norm" if node.kind == "norm" else "neuron", atoms)
        return layout

    def _recurrent(self, node: Node, tensor: Tensor, atoms: Tensor) -> bool:
        """A matrix of a neuron's own from its spikes to its input: both of its dimensions are the neuron's channels."""
        name, size = self.names.get(id(tensor), ""), atoms.numel()
        known = self.graph.inner.get(name.removesuffix("bias") + "weight" if name.endswith("bias") else name)
        if known is None or known[0] != node.name or tuple(tensor.shape) != (size,) * tensor.dim() or tensor.dim() > 2:
            return False
        self.dims[name, 0] = ("out", atoms)
        if tensor.dim() == 2:
            self.dims[name, 1] = ("in", atoms)
        return True

    def _pool(self, node: Node, inputs: Sequence[Tensor | None]) -> Tensor | None:
        layout = inputs[0]
        assert layout is not None
        name = type(node.module).__name__ if node.module is not None else node.name
        rank = next((int(c) for c in name if c in "123"), 2)
        if any(size > 1 for size in layout.shape[-rank:]) or layout.dim() != len(node.shape):
            self._refuse(node, [layout], "pools over channels")
            return None
        return layout

    def _gate(self, node: Node, gate: ChannelGate, inputs: Sequence[Tensor | None]) -> Tensor | None:
        layout = inputs[0]
        assert layout is not None
        before = layout.flatten()
        if before.numel() != gate.channels or layout.dim() < 3:
            self._refuse(node, [layout], f"does not see its {gate.channels} channels")
            return None
        behind = before[gate.index.cpu()]
        if self.split:
            behind = self._new(node.name, 0, behind.numel())
            self.gates[node.name] = (before, behind)
        self.dims[f"{node.name}.keep", 0] = ("gate", before)
        return _along(behind, -3, len(node.shape))

    def _united(self, node: Node, inputs: Sequence[Tensor | None]) -> Tensor | None:
        """One layout for the inputs of a node that joins them, with their atoms united. None if an input is unknown."""
        known = [layout for layout in inputs if layout is not None]
        if len(known) < len(inputs):
            self._refuse(node, known, "joins channels with the model's input")
            return None
        shape = torch.broadcast_shapes(*(layout.shape for layout in known))
        for layout in known[1:]:
            self._unite(known[0], layout)
        return known[0].expand(shape)

    def _elementwise(self, node: Node, inputs: Sequence[Tensor | None]) -> Tensor | None:
        # `arguments` holds None for every tensor: one more than were traced is a tensor of unknown make.
        if sum(value is None for value in node.arguments[0][:2]) > len(inputs):
            self._refuse(node, inputs, "joins channels with a tensor that does not come from the input")
            return None
        return self._united(node, inputs)

    def _write(self, node: Node, inputs: Sequence[Tensor | None]) -> Tensor | None:
        """The layout of a tensor after a write in place, `x[...] = value` or `x.copy_(value)`: the channels of `value`.

        They are united with the channels that the tensor had before. None, with a refusal, if they are not known.
        """
        value = inputs[-1]
        index = node.arguments[0][1] if node.name == "__setitem__" else slice(None)
        if node.name not in ("__setitem__", "copy_") or value is None or _holds_none(index):
            self._refuse(node, inputs, "is not known to keep channels apart")
            return None
        values = self.roots(value)
        filled = torch.full(node.shape, -1)
        filled[index] = values.expand(self.graph.nodes[node.inputs[-1]].shape)
        layout = filled
        for dim in range(filled.dim()):  # entries that were not written now are as free as can be
            known = layout.amax(dim, keepdim=True)
            if bool(((layout == known) | (layout < 0)).all()):
                layout = known
        if bool((layout < 0).any()):
            self._refuse(node, inputs, "writes a part of the channels only")
            return None
        before = inputs[0] if len(inputs) > 1 else None
        if before is not None:
            self._unite(layout, before)
        return layout

    def _moved(self, node: Node, inputs: Sequence[Tensor | None]) -> Tensor | None:
        # What is not known, such as the model's input, stays whole.
        unknown = self._new("what is not known", 0, 1)
        self.fixed.update(unknown.tolist())
        try:
            filled = [
                self.roots(unknown if layout is None else layout).expand(self.graph.nodes[i].shape)
                for i, layout in zip(node.inputs, inputs, strict=True)
            ]
        except RuntimeError:  # a layer used a part of its weight, so that it has fewer outputs than the weight
            self._refuse(node, inputs, "reads the outputs of a part of a weight")
            return None
        result = replay(node, filled)
        if result is None:
            self._refuse(node, inputs, "rearranges channels in a way that cannot be followed")
        return result


def _holds_none(index: Any) -> bool:
    """Whether an index holds a tensor (which the trace does not keep) or a new axis."""
    return any(part is None for part in (index if isinstance(index, tuple) else (index,)))


def _before_layers(graph: Graph) -> set[int]:
    """The nodes that some layer reads, at whatever distance, and the layers."""
    found: set[int] = set()
    for node in reversed(graph.nodes):
        if node.kind in ("conv", "linear") or node.index in found:
            found.add(node.index)
            found.update(node.inputs)
    return found


def _along(values: Tensor, axis: int, rank: int) -> Tensor:
    shape = [1] * rank
    shape[axis] = values.numel()
    return values.view(shape)


def _channel_dim(tensor: Tensor, channels: int, axis: int, kind: str) -> int | None:
    """Which dimension of a parameter of a channelwise module counts channels, None for none."""
    if tensor.dim() >= -axis and (kind == "neuron" or axis == -1):
        # A neuron's parameter meets its input by broadcasting, so it is aligned at the end.
        return tensor.dim() + axis if tensor.shape[axis] == channels else None
    return 0 if tensor.dim() == 1 and tensor.numel() == channels else None


def _type(node: Node) -> str:
    return "" if node.module is None else f"({type(node.module).__name__}) "
