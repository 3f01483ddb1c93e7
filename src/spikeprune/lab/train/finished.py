"""A finished run opened for use: its network on the CPU, and inputs to try it on."""

from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from spikeprune.core.errors import UserError
from spikeprune.data import Dataset, Split, batches, facts_of
from spikeprune.lab.recipe import Recipe
from spikeprune.lab.train.code import NO_CODE, Code, recipe_of
from spikeprune.lab.train.folder import RunFolder
from spikeprune.lab.train.network import TimedNetwork
from spikeprune.lab.train.parts import load_data, restore
from spikeprune.record.run import RunRecord

_RANDOM = 256


@final
@dataclass(frozen=True)
class Finished:
    """A finished run: its record, data and network, in eval mode.

    Args:
        network: with the weights of model.safetensors; pruned weights are 0.
        data: the run's own, or random inputs of the same shape where it is not there.
        inputs: "test images" or "random inputs", for the head of what is printed.
        why_random: what was wrong with the data, None if nothing was.
    """

    folder: RunFolder
    record: RunRecord
    recipe: Recipe
    network: TimedNetwork
    data: Dataset
    inputs: str
    why_random: str | None

    def examples(self, count: int) -> Tensor:
        """At most `count` test inputs, [N, C, H, W] or, of recordings, [T, N, C, H, W]."""
        return next(batches(self.data, "test", count))[0]


def finished(path: str | Path, root: str | None = None, code: Code = NO_CODE) -> Finished:
    """Open a finished run, with or without its data.

    Args:
        root: where the data lies now; without it, absent data is replaced by random inputs.
        code: what the user says about the code that the folder names.
    Raises: UserError if the folder is no finished run, a file in it is damaged, or `root` does not hold the data.
    """
    folder = RunFolder.existing(path)
    record = folder.read_record()
    recipe = recipe_of(folder.path, root, code)
    why = None
    try:
        data = load_data(recipe)
    except UserError as error:
        if root is not None:
            raise
        data, why = _random(recipe, record, folder), str(error)
    network = restore(folder, recipe, data, torch.device("cpu"))
    network.model.eval()
    return Finished(folder, record, recipe, network, data, "random inputs" if why else "test images", why)


def _random(recipe: Recipe, record: RunRecord, folder: RunFolder) -> Dataset:
    """Noise in place of the data: normalised inputs have mean 0 and standard deviation 1, as it has."""
    shape, classes = record.data.shape, record.data.classes
    if shape is None or classes is None:
        raise UserError(
            f"the data of {folder.path} is not there, and its record.json does not tell their shape; pass --root DIR, "
            "the folder that holds the data"
        )
    facts = facts_of(recipe.data.name)
    recorded = facts is not None and facts.time_first
    count = max(_RANDOM, 2 * recipe.T + 2)
    dims = [recipe.T, count, *shape] if recorded else [count, *shape]
    noise = torch.randn(dims, generator=torch.Generator().manual_seed(0))
    split = Split(noise, torch.arange(count) % classes, recorded)
    return Dataset(recipe.data.name, split, split, split, tuple(map(str, range(classes))))
