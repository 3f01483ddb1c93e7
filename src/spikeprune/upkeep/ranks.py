"""Checks that the processes of a distributed training agree, and ends all of them if one fails."""

import hashlib
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from spikeprune.core.errors import InvalidValue

UPDATES, ENDS = 1, 2


def _size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _gathered(values: list[int], device: torch.device) -> list[list[int]]:
    mine = torch.tensor(values, dtype=torch.int64, device=device)
    all_ranks = [torch.empty_like(mine) for _ in range(_size())]
    dist.all_gather(all_ranks, mine)
    return [[int(value) for value in found] for found in all_ranks]


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The sum over all processes, in place; the tensor itself where there is one process."""
    if _size() > 1:
        dist.all_reduce(tensor)
    return tensor


def check_alike(settings: Mapping[str, object], device: torch.device) -> None:
    """Raises: InvalidValue on every rank if the settings of a Pruner differ between ranks, such as its seed."""
    if _size() == 1:
        return
    keys = sorted(settings)
    digests = [int.from_bytes(hashlib.sha256(repr(settings[key]).encode()).digest()[:7], "big") for key in keys]
    found = _gathered(digests, device)
    for column, key in enumerate(keys):
        other = next((rank for rank, row in enumerate(found) if row[column] != found[0][column]), None)
        if other is not None:
            raise InvalidValue(
                f"the Pruner of rank {other} has another {key} than that of rank 0, so their masks would differ; "
                f"make the Pruner alike on every rank (here {key} is {str(settings[key])[:60]})"
            )


def meet(kind: int, step: int, device: torch.device) -> None:
    """Before a mask update, or where a rank ends with mask updates to come: all ranks do the same at the same step.

    Raises: InvalidValue on every rank if they do not.
    """
    if _size() == 1:
        return
    found = _gathered([kind, step], device)
    if any(row != found[0] for row in found):
        acts = {UPDATES: "updates", ENDS: "ends"}
        said = ", ".join(f"rank {rank} {acts[kind]} at step {at}" for rank, (kind, at) in enumerate(found))
        raise InvalidValue(
            f"the ranks have taken an uneven number of steps ({said[:160]}); give each rank as many batches, "
            "as DistributedSampler and drop_last=True do"
        )
