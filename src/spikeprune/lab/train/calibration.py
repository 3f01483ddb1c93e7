"""The calibration images of a squeeze: drawn from the training split, never from the test split."""

import dataclasses
import math

import torch
from torch import Tensor

from spikeprune.data import Dataset, batches


def calibration(
    data: Dataset, images: int, batch: int, seed: int, device: torch.device | str = "cpu"
) -> list[tuple[Tensor, Tensor]]:
    """Batches of `images` training images (all, if there are fewer), drawn without replacement by the seed.

    The batches are of nearly the same size, at most `batch`: a last batch of one image would give BatchNorm a single
    value per channel.
    """
    count = min(images, len(data.train))
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed))
    few = dataclasses.replace(data, train=data.train.take(order[:count]))
    size = math.ceil(count / math.ceil(count / batch))
    return list(batches(few, "train", size, device=device))
