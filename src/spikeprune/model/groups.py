"""Which channels must be cut together: coupled groups, read from the channels of the traced graph."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from spikeprune.core.errors import InvalidValue
from spikeprune.model.channels import ChannelMap, Role
from spikeprune.model.trace import Graph, Node


@dataclass(frozen=True)
class Slice:
    """Where channels lie in a tensor: index i of dimension `dim` is channel `channels[i]`, or none of them if -1."""

    tensor: str
    dim: int
    role: Role
    channels: Tensor


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that are cut together, one by one.

    Attributes:
        name: the layer that makes the channels (the first in execution order); with gates, the normalisation.
        channels: how many.
        slices: every dimension of every parameter and buffer that the channels have a share in.
        neurons: names of the neurons that fire for these channels, in execution order.
    """

    name: str
    channels: int
    slices: tuple[Slice, ...]
    neurons: tuple[str, ...]

    def tensors(self, *roles: Role) -> list[str]:
        """Names of the tensors with a slice of one of these roles."""
        return list(dict.fromkeys(s.tensor for s in self.slices if s.role in roles))


def channel_groups(
    graph: Graph, model: nn.Module, pattern: Literal["channel", "gate"] = "channel"
) -> tuple[ChannelGroup, ...]:
    """The prunable channel groups of a model, in execution order.

    With "channel", all that a cut must take along is one group: the residual stream of a stage, with its stem and
    shortcuts, is one. With "gate", every normalisation that a `ChannelGate` follows is a group of its own, and the
    stream before it stays wide; beside them, the groups that hold just one normalisation.

    A group that holds a channel which cannot be followed, through attention for example, is left out: it stays whole.

    Raises: InvalidValue naming the module or function that stands in the way, if no group is left.
    """
    table = ChannelMap(graph, model, gates="split" if pattern == "gate" else "through")
    whole = _components(table)
    refused = table.refusals()
    if refused and not whole:
        raise InvalidValue(
            f"channels of this network cannot be cut: {next(iter(refused.values()))}; "
            "prune its weights instead (pattern='weight')"
        )
    if pattern == "channel":
        return tuple(whole)
    gated = _gated(table)
    taken = {norm for group in gated for norm in group.tensors("norm")}
    private = [
        group
        for group in whole
        if len({name.rpartition(".")[0] for name in group.tensors("norm")}) == 1
        and not taken & set(group.tensors("norm"))
    ]
    first = {name: node.index for node in reversed(graph.nodes) for name in (node.name, title_of_layer(node))}
    return tuple(sorted([*gated, *private], key=lambda group: first[group.name]))


def _components(table: ChannelMap) -> list[ChannelGroup]:
    fixed = table.whole()
    rows = {
        key: table.roots(atoms) for key, (role, atoms) in table.dims.items() if role == "out" and _is_weight(key, table)
    }
    groups: list[ChannelGroup] = []
    while rows:
        key = next(iter(rows))
        atoms, members = rows.pop(key), [key]
        channels = atoms.unique()
        grown = True
        while grown:
            grown = False
            for other in list(rows):
                if torch.isin(rows[other], channels).any():
                    atoms = torch.cat([atoms, rows.pop(other)])
                    channels, grown = atoms.unique(), True
                    members.append(other)
        if not fixed.intersection(channels.tolist()):
            groups.append(_group(table, _layer_name(key[0], table), _in_order(atoms)))
    return groups


def _gated(table: ChannelMap) -> list[ChannelGroup]:
    nodes = table.graph.nodes
    groups: list[ChannelGroup] = []
    for node in nodes:
        if node.name not in table.gates or any(g.name == node.name for g in groups):
            continue
        source = nodes[node.inputs[0]]
        while source.kind in ("neuron", "identity", "pool"):
            source = nodes[source.inputs[0]]
        if source.kind != "norm":
            raise InvalidValue(
                f"the gate {node.name!r} does not stand behind a BatchNorm, whose channels it could choose"
            )
        _, behind = table.gates[node.name]
        group = _group(table, source.name, _in_order(table.roots(behind)))
        place = torch.arange(group.channels)
        own = tuple(
            Slice(name, 0, "norm", place)
            for local in ("weight", "bias")
            if (name := f"{source.name}.{local}") in table.names.values()
        )
        groups.append(ChannelGroup(source.name, group.channels, (*own, *group.slices), group.neurons))
    return groups


def _group(table: ChannelMap, name: str, order: Tensor) -> ChannelGroup:
    place = torch.full((table.size,), -1)
    place[order] = torch.arange(order.numel())
    slices: list[Slice] = []
    for (tensor, dim), (role, atoms) in table.dims.items():
        channels = place[table.roots(atoms)]
        if bool((channels >= 0).any()):
            slices.append(Slice(tensor, dim, role, channels))
    neurons = [n for n, atoms in table.neurons.items() if bool((place[table.roots(atoms)] >= 0).any())]
    return ChannelGroup(name, order.numel(), tuple(slices), tuple(neurons))


def title_of_layer(node: Node) -> str:
    """The module's name; of a function that multiplies with a weight, that of the weight's module."""
    return node.name if node.module is not None else (node.weight or node.name).removesuffix(".weight")


def _in_order(atoms: Tensor) -> Tensor:
    """Each atom once, in the order of its first appearance."""
    return torch.tensor(list(dict.fromkeys(atoms.tolist())), dtype=torch.long)


def _is_weight(key: tuple[str, int], table: ChannelMap) -> bool:
    return key in table.dims and any(node.weight == key[0] for node in table.graph.nodes)


def _layer_name(weight: str, table: ChannelMap) -> str:
    node = next(node for node in table.graph.nodes if node.weight == weight)
    return title_of_layer(node)
