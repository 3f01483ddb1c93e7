"""The goal of a squeeze: given masks, or an amount to keep under a budget."""

from collections.abc import Mapping

from torch import Tensor

from spikeprune.core import allocate as allocation
from spikeprune.core.mask import Masks, check_fit, count
from spikeprune.core.pattern import nm_pattern
from spikeprune.core.update import Target
from spikeprune.count.costs import weight_budget
from spikeprune.squeeze.network import Network
from spikeprune.squeeze.settings import SqueezeSettings


def given_masks(network: Network, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The user's masks as bool: of weights that may be pruned, and of the vectors that go with cut channels.

    Raises: UnknownName, InvalidValue for masks of another network.
    """
    every = dict(network.model.named_parameters())
    check_fit(masks, every)
    wanted = {n for n in masks if n in network.parameters or every[n].ndim < 2}
    return {n: Masks({n: masks[n]})[n].to(p.device) for n, p in every.items() if n in wanted}


def target(network: Network, settings: SqueezeSettings, sparsity: float, rates: Mapping[str, Tensor]) -> Target:
    """The amount that is kept at a sparsity.

    Args:
        rates: parameter name -> share of non-zero inputs, for a budget of synaptic operations.
    Raises: InvalidValue if no network meets the budget.
    """
    parameters = network.parameters
    keep = allocation.kept(sum(p.numel() for p in parameters.values()), sparsity)
    least = allocation.floors(parameters, settings.floor)
    if settings.budget == "weights":
        where = settings.allocate if settings.allocate in ("uniform", "erk") else "global"
        return Target(keep, where, least, pattern=nm_pattern(settings.pattern))
    costs, allowed = weight_budget(settings.budget, network.model, parameters, network.graph, rates, sparsity)
    return Target(keep, "global", least, cost=costs, budget=allowed)


def is_met(alive: Mapping[str, Tensor], wanted: Target) -> bool:
    """Whether these masks keep no more than the target says."""
    if wanted.cost is not None:
        return size_of(alive, wanted) <= wanted.budget * (1 + 1e-12)
    if count(alive) > wanted.keep:
        return False
    return wanted.pattern is None or all(_fits(m, *wanted.pattern) for m in alive.values())


def size_of(alive: Mapping[str, Tensor], wanted: Target) -> float:
    """The alive weights in the target's own unit: how many, or what they cost."""
    if wanted.cost is None:
        return float(count(alive))
    return sum(float((m.double() * wanted.cost[n]).sum()) for n, m in alive.items())


def _fits(mask: Tensor, n: int, m: int) -> bool:
    """Whether at most n of every m neighbouring inputs are alive."""
    return bool((mask.movedim(1, -1).reshape(-1, m).sum(1) <= n).all())
