"""A sweep under torchrun: each process (rank) makes a share of the runs, and they meet before and after.

A rank that ended early with an error would have torchrun stop the others, so failures are told after all have met.
"""

import datetime
import os
from dataclasses import dataclass
from typing import final

import torch
import torch.distributed as dist

from spikeprune.core.errors import InvalidValue

_NAMES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_PATIENCE = datetime.timedelta(days=30)  # the others may still train


@final
@dataclass(frozen=True)
class Rank:
    """This process among those that torchrun started: `number` of `of`, from 0 on."""

    number: int
    of: int

    def meet(self) -> None:
        """Wait until all processes are here. They share no tensors, so the gloo backend works on every machine."""
        if not dist.is_initialized():
            dist.init_process_group("gloo", rank=self.number, world_size=self.of, timeout=_PATIENCE)
        dist.barrier()

    def leave(self) -> None:
        """After the last meeting."""
        dist.destroy_process_group()


def this_rank() -> Rank | None:
    """The rank and number of processes that torchrun set. None without torchrun, or for one process alone.

    On a machine with several GPUs each process takes its own.
    Raises: InvalidValue for an environment that makes no sense.
    """
    found = {name: os.environ[name] for name in _NAMES if name in os.environ}
    if len(found) < len(_NAMES):
        return None
    try:
        rank = Rank(int(found["RANK"]), int(found["WORLD_SIZE"]))
        if not 0 <= rank.number < rank.of:
            raise ValueError
    except ValueError as error:
        raise InvalidValue(
            f"RANK={found['RANK']} and WORLD_SIZE={found['WORLD_SIZE']} must be whole numbers with 0 <= RANK < "
            "WORLD_SIZE; torchrun sets them, unset them to run without it"
        ) from error
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    return rank if rank.of > 1 else None
