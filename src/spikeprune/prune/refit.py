"""A saved state for a network that has another head: what fits is taken up, the rest starts dense."""

import logging
from collections.abc import Mapping
from typing import TypeVar, cast

import torch

from spikeprune.core.errors import InvalidValue
from spikeprune.core.mask import pack
from spikeprune.record.checkpoint import PrunerSettings, PrunerState, SpaceState

_log = logging.getLogger("spikeprune")
_V = TypeVar("_V")


def refitted(state: PrunerState, settings: PrunerSettings) -> PrunerState:
    """The state, with dense masks for parameters that it has in another shape, or not at all.

    Args:
        settings: those of the Pruner that the state is for.
    Raises: InvalidValue if no parameter fits, or if channels, or weights that the method keeps for each parameter,
        would have to fit too.
    """
    mine, theirs = settings["parameters"], state["settings"]["parameters"]
    new = [name for name, shape in mine.items() if list(theirs.get(name, [])) != list(shape)]
    gone = {name for name in theirs if name not in mine} | set(new)
    if not gone:
        return state
    if len(new) == len(mine):
        raise InvalidValue(
            f"the saved pruner state is of another network: {new[0]!r} and all others "
            "differ in shape; load a state of this network"
        )
    if "alive" in state["space"] or state["memory"] or state["rewind"] is not None:
        raise InvalidValue(
            f"the saved pruner state has another {sorted(gone)[0]!r}, and it holds more than masks of weights; only "
            "states of weight pruning, without weights that the method keeps, fit another head; pass the masks to a "
            "new Pruner (masks=)"
        )
    masks = {**_without(gone, state["masks"]), **{n: pack(torch.ones(mine[n], dtype=torch.bool)) for n in new}}
    _log.warning(
        "%s: other shapes than in the saved pruner state, so %s dense; all other masks are taken up",
        ", ".join(map(repr, sorted(gone)[:4])),
        "they start" if len(gone) > 1 else "it starts",
    )
    last = state["space"]["last"]
    return {
        **state,
        "masks": masks,
        "regrown": None if state["regrown"] is None else _with_none(gone, new, mine, state["regrown"]),
        "ever_regrown": _without(gone, state["ever_regrown"]),
        "totals": _without(gone, state["totals"]),
        "space": cast(SpaceState, {"last": _without(gone, last)}),
    }


def _without(gone: set[str], values: Mapping[str, _V]) -> dict[str, _V]:
    return {name: value for name, value in values.items() if name not in gone}


def _with_none(
    gone: set[str], new: list[str], shapes: Mapping[str, list[int]], bits: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Packed masks of what was regrown last: nothing of the new parameters."""
    nothing = {name: pack(torch.zeros(shapes[name], dtype=torch.bool)) for name in new}
    return {**_without(gone, bits), **nothing}
