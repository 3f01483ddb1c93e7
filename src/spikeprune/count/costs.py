"""The cost of weights and channels under a budget of parameters, multiplies or synaptic operations."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from spikeprune.core.allocate import kept
from spikeprune.core.errors import InvalidValue, MissingEvidence
from spikeprune.core.select import Cost
from spikeprune.model.groups import ChannelGroup
from spikeprune.model.trace import Graph, Node

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
    Raises: MissingEvidence if no forward has been traced, or the input rates of a weight are not known.
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
            each = (_rate(name, rates) * count).clamp_min(1e-9 * count)
            inputs = 1 - outputs_of[name]
            each = each.view(*[-1 if dim == inputs else 1 for dim in range(every[name].ndim)])
        if name in parameters:
            cost[name] = each
        else:
            fixed += float(torch.as_tensor(each).expand(every[name].shape).sum())
    return {name: cost[name] for name in parameters}, fixed


def _rate(name: str, rates: Mapping[str, Tensor]) -> Tensor:
    if not rates:
        raise MissingEvidence("budget='synops' needs firing rates; pass data=, or attach before the forward")
    if name not in rates:
        raise MissingEvidence(
            f"budget='synops' needs the input rate of {name!r}, which no layer of its own multiplies with; "
            "take budget='macs'"
        )
    return rates[name]


def weight_budget(
    budget: str,
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    graph: Graph | None,
    rates: Mapping[str, Tensor],
    sparsity: float,
) -> tuple[dict[str, float | Tensor], float]:
    """Cost of one weight of every prunable parameter, and what all that is kept of them may cost at a sparsity.

    Args: as for `weight_costs`.
    Raises: as `weight_costs`; InvalidValue if what is not prunable needs more alone.
    """
    cost, fixed = weight_costs(budget, model, parameters, graph, rates)
    each = {n: torch.as_tensor(cost[n], dtype=torch.float64).expand(p.shape) for n, p in parameters.items()}
    whole = sum(float(costs.sum()) for costs in each.values())
    allowed = (whole + fixed) * (1 - sparsity) - fixed
    if allowed <= 0:
        raise InvalidValue(
            f"a sparsity of {sparsity:g} in {budget} cannot be met: the layers that are not prunable alone need more"
        )
    return cost, allowed


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

    Returns: the function; it raises MissingEvidence under "synops" if a weight's rate is not known when it is called.
    """
    every = dict(model.named_parameters())
    table = {name: p.shape for name, p in every.items()}
    owners: dict[str, list[tuple[int, str, Tensor]]] = {}
    for group in groups:
        for part in group.slices:
            if part.tensor in table:
                owners.setdefault(part.tensor, []).append((part.dim, group.name, part.channels))
    positions: dict[str, float] = dict.fromkeys(table, 1.0) if budget == "parameters" else {}
    outputs: dict[str, int] = {}
    for node in graph.nodes if budget != "parameters" else ():
        if node.weight is not None:
            outputs[node.weight] = _outputs(node)
            positions[node.weight] = positions.get(node.weight, 0.0) + _positions(node, graph, every[node.weight])

    def cost(keep: Mapping[str, Tensor]) -> float:
        total = 0.0
        for name, each in positions.items():
            sizes = [torch.ones(size, dtype=torch.float64) for size in table[name]]
            if budget == "synops":
                sizes[1 - outputs[name]] = _rate(name, rates or {}).double().cpu().clone()
            for dim, group, channels in owners.get(name, []):
                alive = keep[group].cpu()[channels.clamp_min(0)] | (channels < 0)
                sizes[dim] = sizes[dim] * alive
            volume = each
            for size in sizes:
                volume *= float(size.sum())
            total += volume
        return total

    return cost


def check_budget(groups: Sequence[ChannelGroup], sparsity: float, floor: Mapping[str, int]) -> int:
    """How many channels a sparsity keeps: floor(N * (1 - sparsity) + 1e-6).

    Args: floor: group name -> the least that it keeps.
    Raises: InvalidValue if that is less than all floors together.
    """
    total = sum(group.channels for group in groups)
    keep = kept(total, sparsity)
    least = sum(min(floor[group.name], group.channels) for group in groups)
    if keep < least:
        raise InvalidValue(
            f"a sparsity of {sparsity:g} keeps {keep} of {total} channels, fewer than the {least} that the "
            f"{len(groups)} groups need, so a layer would vanish; the highest possible is {1 - least / total:.4f}"
        )
    return keep


def check_cost(budget: str, cost: Cost, alive: Mapping[str, Tensor], sparsity: float, floor: Mapping[str, int]) -> None:
    """Raises: InvalidValue if a network of the floors alone costs more than a sparsity allows.

    Args:
        alive: group name -> bool [C], for the sizes.
        floor: group name -> the least that it keeps.
    """
    lowest = cost({n: torch.arange(len(m)) < floor[n] for n, m in alive.items()})
    whole = cost({n: torch.ones_like(m) for n, m in alive.items()})
    if lowest > whole * (1 - sparsity):
        raise InvalidValue(
            f"a sparsity of {sparsity:g} in {budget} cannot be met without a layer vanishing; "
            f"the highest possible is {1 - lowest / whole:.4f}"
        )
