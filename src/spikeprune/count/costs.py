"""What weights and channels cost under a budget of parameters, multiplies or synaptic operations."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from spikeprune.core.errors import MissingEvidence
from spikeprune.core.select import Cost
from spikeprune.model.groups import ChannelGroup
from spikeprune.model.trace import Graph, Node
from spikeprune.model.weights import stored_weight

BUDGETS = ("macs", "parameters", "synops", "weights")


def weight_costs(
    budget: str,
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    graph: Graph | None,
    rates: Mapping[str, Tensor],
) -> tuple[dict[str, float | Tensor], float]:
    """Cost of one weight of every prunable parameter, and the cost of all that is not prunable.

        parameters  1 each
        macs        positions that the weight is multiplied at, over the whole forward that was traced
        synops      macs times the share of non-zero inputs, per input channel

    Only ratios matter, so the traced batch size drops out.
    Args: rates: parameter name -> share of non-zero inputs [I], for "synops".
    Raises: MissingEvidence if no forward has been traced, or no input rates are known.
    """
    if budget == "parameters":
        rest = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in parameters.values())
        return dict.fromkeys(parameters, 1.0), float(rest)
    if graph is None:
        raise MissingEvidence(f"budget={budget!r} needs one forward through the model first; pass data=, or attach")
    every = dict(model.named_parameters())
    positions: dict[str, float] = {}
    outputs_of = {node.weight: _outputs(node) for node in graph.nodes if node.weight is not None}
    for node in graph.nodes:
        if node.weight is not None:
            positions[node.weight] = positions.get(node.weight, 0.0) + _positions(node, graph, every[node.weight])
    missing = [name for name in parameters if name not in positions]
    if missing:
        raise MissingEvidence(f"{missing[0]!r} took no part in the traced forward; exclude it or call the whole model")
    cost: dict[str, float | Tensor] = {}
    fixed = 0.0
    for name, count in positions.items():
        each: float | Tensor = count
        if budget == "synops":
            if name not in rates:
                raise MissingEvidence("budget='synops' needs firing rates; pass data=, or attach before the forward")
            each = (rates[name] * count).clamp_min(1e-9 * count)
            inputs = 1 - outputs_of[name]
            each = each.view(*[-1 if dim == inputs else 1 for dim in range(every[name].ndim)])
        if name in parameters:
            cost[name] = each
        else:
            fixed += float(torch.as_tensor(each).expand(every[name].shape).sum())
    return {name: cost[name] for name in parameters}, fixed


def _outputs(node: Node) -> int:
    """The dimension of the node's weight that counts outputs."""
    return node.use.outputs if node.use is not None else int(isinstance(node.module, _ConvTransposeNd))


def _positions(node: Node, graph: Graph, weight: Tensor) -> float:
    """How often the node multiplies with the whole weight; a transposed convolution does so at each input position."""
    if isinstance(node.module, _ConvTransposeNd) or "transpose" in node.name:
        return _numel(graph.nodes[node.inputs[0]].shape) / weight.shape[0]
    return _numel(node.shape) / weight.shape[_outputs(node)]


def _numel(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def network_cost(
    budget: str,
    groups: Sequence[ChannelGroup],
    model: nn.Module,
    graph: Graph,
    rates: Mapping[str, Tensor] | None = None,
) -> Cost:
    """A function from masks of channels to the cost of the network that is left.

        parameters  every entry of every parameter that stays
        macs        multiplies of every Conv and Linear, over the traced forward
        synops      macs times the share of non-zero inputs, per input channel

    The cost of a layer is the product of what stays of its inputs and of its outputs, so it is no sum over channels.

    Args:
        budget: "parameters", "macs" or "synops".
        rates: weight name -> share of non-zero inputs, [in_channels], for "synops".
    """
    table = {name: p.shape for name, p in model.named_parameters()}
    owners: dict[str, list[tuple[int, str, Tensor]]] = {}
    for group in groups:
        for part in group.slices:
            if part.tensor in table:
                owners.setdefault(part.tensor, []).append((part.dim, group.name, part.channels))
    positions: dict[str, float] = dict.fromkeys(table, 1.0) if budget == "parameters" else {}
    for node in graph.nodes if budget != "parameters" else ():
        if node.weight is not None:
            made = torch.Size(node.shape).numel() / table[node.weight][0]
            positions[node.weight] = positions.get(node.weight, 0.0) + made

    def cost(keep: Mapping[str, Tensor]) -> float:
        total = 0.0
        for name, each in positions.items():
            sizes = [torch.ones(size, dtype=torch.float64) for size in table[name]]
            if budget == "synops" and rates is not None:
                sizes[1] = rates[name].double().cpu().clone()
            for dim, group, channels in owners.get(name, []):
                alive = keep[group].cpu()[channels.clamp_min(0)] | (channels < 0)
                sizes[dim] = sizes[dim] * alive
            volume = each
            for size in sizes:
                volume *= float(size.sum())
            total += volume
        return total

    return cost


class InputRates:
    """Hooks that measure the share of non-zero inputs of every Conv and Linear layer, per input channel."""

    def __init__(self, model: nn.Module) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, float] = {}
        names = {id(p): n for n, p in model.named_parameters()}
        self._handles = [
            module.register_forward_pre_hook(self._watch(names[id(stored_weight(module))]), with_kwargs=True)
            for module in model.modules()
            if isinstance(module, (_ConvNd, nn.Linear)) and id(stored_weight(module)) in names
        ]

    def _watch(self, name: str) -> Any:
        def see(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            # A trace that runs meanwhile must not take what is counted here for a part of the model.
            with torch.no_grad(), torch._C.DisableTorchFunction():
                x = (*args, *kwargs.values())[0].detach()
                axis = -1 if isinstance(module, nn.Linear) else -1 - len(module.kernel_size)  # type: ignore[arg-type]
                active = (x != 0).double().movedim(axis, 0).flatten(1)
                if isinstance(module, _ConvNd) and module.groups > 1:
                    # A grouped weight [O, I / groups, ...] sees each of its inputs through every group: average.
                    active = active.view(module.groups, -1, active.shape[1]).mean(0)
                self._sums[name] = self._sums.get(name, 0) + active.sum(1)
                self._counts[name] = self._counts.get(name, 0.0) + active.shape[1]

        return see

    def remove(self) -> None:
        """Takes the hooks off; the rates stay."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def rates(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """Parameter name -> share of non-zero inputs, [I]; `reduce` sums a tensor over ranks."""
        return {
            name: (reduce(total) / reduce(torch.tensor(self._counts[name], device=total.device))).float()
            for name, total in self._sums.items()
        }
