"""Scores of a network: plain evaluation in float32, without augmentation."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from spikeprune.lab.train.by_class import ClassScores, Tally
from spikeprune.lab.train.network import TimedNetwork
from spikeprune.zoo.readout import predict


@final
@dataclass(frozen=True)
class Score:
    """Over all samples: share of right answers, and mean cross-entropy of the logits averaged over time.

    Attributes:
        classes: right answers and samples of each class that the network has an output for.
    """

    accuracy: float
    loss: float
    classes: ClassScores


def score(network: TimedNetwork, batches: Iterable[tuple[Tensor, Tensor]], recorded: bool = False) -> Score:
    """Evaluate without changing anything: mode and membrane state are put back.

    Args:
        batches: (inputs, labels) on the model's device; at least one.
    """
    training = network.model.training
    network.model.eval()
    loss, tally = 0.0, Tally()
    try:
        with torch.no_grad():
            for x, target in batches:
                logits = network(x, recorded).float()
                tally.add(predict(logits), target, logits.shape[-1])
                loss += float(F.cross_entropy(logits.mean(0), target, reduction="sum").double())
    finally:
        network.adapter.reset(network.model)
        network.model.train(training)
    scores = tally.scores()
    return Score(scores.accuracy, loss / sum(scores.images), scores)
