"""What a network gets right: plain evaluation, in float32 and without augmentation."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from spikeprune.lab.train.network import TimedNetwork
from spikeprune.zoo.readout import predict


@final
@dataclass(frozen=True)
class Score:
    """Over all samples: share of right answers, and mean cross-entropy of the logits averaged over time."""

    accuracy: float
    loss: float


def score(network: TimedNetwork, batches: Iterable[tuple[Tensor, Tensor]], recorded: bool = False) -> Score:
    """Evaluate without changing anything: mode and membrane state are put back.

    Args:
        batches: (inputs, labels) on the model's device; at least one.
    """
    training = network.model.training
    network.model.eval()
    right, seen, loss = 0, 0, 0.0
    try:
        with torch.no_grad():
            for x, target in batches:
                logits = network(x, recorded).float()
                right += int((predict(logits) == target).sum())
                loss += float(F.cross_entropy(logits.mean(0), target, reduction="sum").double())
                seen += len(target)
    finally:
        network.adapter.reset(network.model)
        network.model.train(training)
    return Score(right / seen, loss / seen)
