"""The score of a network on the test split, in all and for each class."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from spikeprune.lab.train.network import TimedNetwork
from spikeprune.zoo.readout import predict


@final
@dataclass(frozen=True)
class ClassScores:
    """Right answers and images of each class."""

    right: tuple[int, ...]
    images: tuple[int, ...]

    @property
    def accuracy(self) -> float:
        """Over all images; the same number as `score` gives."""
        return sum(self.right) / sum(self.images)


def score_classes(
    network: TimedNetwork, batches: Iterable[tuple[Tensor, Tensor]], classes: int, recorded: bool = False
) -> ClassScores:
    """Evaluate without changing anything: mode and membrane state are put back.

    Args:
        batches: (inputs, labels) on the model's device; at least one.
    """
    training = network.model.training
    network.model.eval()
    right = torch.zeros(classes, dtype=torch.int64)
    images = torch.zeros(classes, dtype=torch.int64)
    try:
        with torch.no_grad():
            for x, target in batches:
                hits = predict(network(x, recorded).float()) == target
                images += torch.bincount(target.cpu(), minlength=classes)
                right += torch.bincount(target[hits].cpu(), minlength=classes)
    finally:
        network.adapter.reset(network.model)
        network.model.train(training)
    return ClassScores(tuple(right.tolist()), tuple(images.tolist()))
