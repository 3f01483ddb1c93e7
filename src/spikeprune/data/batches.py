"""Batches of data in memory: the same ones for the same (seed, epoch), whichever batch one starts at.

Shapes: T time steps, N batch, C channels, H/W space.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from spikeprune.core.errors import InvalidValue
from spikeprune.data.augment import Augment
from spikeprune.data.dataset import Dataset, SplitName


def steps_per_epoch(count: int, batch_size: int, drop_last: bool = False) -> int:
    """Number of batches that `count` samples make: 391 for 50,000 in batches of 128, 390 with `drop_last`."""
    if batch_size < 1:
        raise InvalidValue(f"batch must be a whole number of at least 1, got {batch_size}")
    return count // batch_size if drop_last else -(-count // batch_size)


def batches(
    data: Dataset,
    split: SplitName,
    batch_size: int,
    *,
    shuffle: bool = False,
    seed: int = 0,
    epoch: int = 0,
    start: int = 0,
    device: torch.device | str = "cpu",
    augment: Augment | None = None,
    drop_last: bool = False,
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch of (inputs, labels), inputs normalised: x = (inputs / scale - mean) / std.

    The order depends on (seed, epoch), the draws for a batch's augmentation on (seed, epoch, number of the batch), and
    neither on what was drawn before. So a run that stopped after k batches goes on with `start=k`, bit for bit.
    Both are drawn on the CPU, so every device gets the same batches.

    Args:
        data: may lie on `device` already (`data.to(device)`), which saves the copy of every batch.
        start: number of the first batch to give.
        augment: applied to the stored pixels, before normalisation; None for evaluation.
    Yields: inputs, float32 [N, C, H, W] (or [N, F], or [T, N, C, H, W]), and labels, int64 [N].
    """
    chosen = data.split(split)
    total = steps_per_epoch(len(chosen), batch_size, drop_last)
    if not 0 <= start <= total:
        raise InvalidValue(f"start must be 0 to {total}, the number of batches, got {start}")
    return _batches(data, split, batch_size, range(start, total), shuffle, (seed, epoch), torch.device(device), augment)


def _batches(
    data: Dataset,
    split: SplitName,
    batch_size: int,
    numbers: range,
    shuffle: bool,
    key: tuple[int, int],
    device: torch.device,
    augment: Augment | None,
) -> Iterator[tuple[Tensor, Tensor]]:
    chosen = data.split(split)
    factor, shift = _affine(data, device)
    generator = torch.Generator()
    order = torch.arange(len(chosen))
    if shuffle:
        order = torch.randperm(len(chosen), generator=generator.manual_seed(_mixed(*key)))
    for number in numbers:
        part = chosen.take(order[number * batch_size : (number + 1) * batch_size]).to(device)
        inputs = part.inputs
        if augment is not None:
            inputs = augment(inputs, generator.manual_seed(_mixed(*key, 1 + number)))
        yield inputs.float().mul_(factor).sub_(shift), part.labels


def _affine(data: Dataset, device: torch.device) -> tuple[Tensor, Tensor]:
    """Factor and shift, broadcastable to a batch: x = inputs * factor - shift."""
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in (data.mean, data.std))
    if len(mean) > 1:
        mean, std = (values.view(-1, *[1] * (len(data.shape) - 1)) for values in (mean, std))
    factor, shift = 1 / (data.scale * std), mean / std
    return factor.to(device, torch.float32), shift.to(device, torch.float32)


def _mixed(*key: int) -> int:
    """One seed from several numbers, well spread: neighbouring epochs and batches share nothing."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])
