"""One network trained by several processes: each takes a part of every batch, and gradients are summed."""

import dataclasses
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import final

import torch
import torch.distributed as dist
from torch import Tensor, nn

from spikeprune.core.errors import InvalidValue, RunFailed
from spikeprune.lab.recipe import Recipe
from spikeprune.lab.train.folder import folder_of


@final
class Together:
    """This process among those that train one network: `number` of `of`.

    All take the same batches in the same order and keep a part of each. The gradient is that of the mean over the whole
    batch, and a mask update sees all samples, so every process holds the same weights and masks. BatchNorm measures
    each process's own part, and what is validated and saved has the running statistics of process 0.
    """

    def __init__(self, number: int, of: int) -> None:
        self.number, self.of = number, of

    @contextmanager
    def joined(self) -> Iterator[None]:
        """The process group: nccl where there are GPUs, else gloo."""
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
        dist.init_process_group(backend, rank=self.number, world_size=self.of)
        try:
            yield
        finally:
            dist.destroy_process_group()

    @contextmanager
    def recipe_of(self, recipe: Recipe) -> Iterator[Recipe]:
        """The recipe that this process carries out: process 0 alone writes the run folder, the others a copy that goes.

        Raises: InvalidValue for a batch that has no sample for some process.
        """
        if recipe.batch < self.of:
            raise InvalidValue(
                f"a batch of {recipe.batch} samples has none for some of {self.of} processes; raise --batch"
            )
        if self.number == 0:
            dist.barrier()  # the others have copied the last checkpoint
            yield recipe
            return
        with tempfile.TemporaryDirectory(prefix="spikeprune-") as scratch:
            there = folder_of(recipe).path
            if there.is_dir():
                shutil.copytree(
                    there, Path(scratch) / there.name, ignore=shutil.ignore_patterns("recipe.yaml", ".lock")
                )
            dist.barrier()
            yield dataclasses.replace(recipe, out=scratch)

    def share(self, x: Tensor, target: Tensor, time_first: bool) -> tuple[Tensor, Tensor]:
        """This process's part of a batch, in which samples are axis 1 behind time and axis 0 otherwise.

        Raises: InvalidValue if it is empty.
        """
        rows = torch.arange(len(target)).tensor_split(self.of)[self.number].to(target.device)
        if not len(rows):
            raise InvalidValue(
                f"a batch of {len(target)} samples, such as the last one of an epoch, has none for some of {self.of} "
                "processes; choose --batch so that the last batch is larger"
            )
        return x.index_select(int(time_first), rows), target.index_select(0, rows)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sums the gradients over all processes; each has weighted its loss by its part of the batch."""
        for parameter in parameters:
            if parameter.requires_grad:
                if parameter.grad is None:  # another process's part may have one
                    parameter.grad = torch.zeros_like(parameter)
                dist.all_reduce(parameter.grad)

    def sum(self, *values: Tensor) -> None:
        """Sums tensors over all processes, in place."""
        for value in values:
            dist.all_reduce(value)

    def take_buffers(self, model: nn.Module) -> None:
        """Gives every process the buffers of process 0, such as BatchNorm's running statistics."""
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)

    def check_agreed(self, step: int) -> None:
        """Raises: RunFailed if the processes are not at the same step."""
        steps: list[int | None] = [None] * self.of
        dist.all_gather_object(steps, step)
        if len(set(steps)) > 1:
            raise RunFailed(
                f"the processes go on from different steps ({', '.join(map(str, steps))}); --out must be a folder that "
                "all of them can read"
            )
