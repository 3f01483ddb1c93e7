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


@final
@dataclass
class Tally:
    """Right answers and samples of each class, summed over batches."""

    right: Tensor | None = None
    images: Tensor | None = None

    def add(self, predicted: Tensor, target: Tensor, classes: int) -> None:
        """Counts one batch. `predicted` and `target` are class numbers [N], below `classes`."""
        images = torch.bincount(target.cpu(), minlength=classes)
        right = torch.bincount(target[predicted == target].cpu(), minlength=classes)
        self.images = images if self.images is None else self.images + images
        self.right = right if self.right is None else self.right + right

    def scores(self) -> ClassScores:
        """The counts over all batches. Raises: ValueError if there was no batch."""
        if self.right is None or self.images is None:
            raise ValueError("no batch was counted; give at least one")
        return ClassScores(tuple(self.right.tolist()), tuple(self.images.tolist()))


def score_classes(
    network: TimedNetwork, batches: Iterable[tuple[Tensor, Tensor]], classes: int, recorded: bool = False
) -> ClassScores:
    """Evaluate without changing anything: mode and membrane state are put back.

    Args:
        batches: (inputs, labels) on the model's device; at least one.
    """
    training = network.model.training
    network.model.eval()
    tally = Tally()
    try:
        with torch.no_grad():
            for x, target in batches:
                tally.add(predict(network(x, recorded).float()), target, classes)
    finally:
        network.adapter.reset(network.model)
        network.model.train(training)
    return tally.scores()
