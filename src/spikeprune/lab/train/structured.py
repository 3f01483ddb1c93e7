"""Whole channels in a run: pruning once between two trainings, and the physically smaller network at the end."""

import dataclasses
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from spikeprune.data import Dataset, batches
from spikeprune.lab.train.network import TimedNetwork
from spikeprune.prune.pruner import Pruner
from spikeprune.record.round import Round
from spikeprune.record.run import ChannelsRecord
from spikeprune.shrink.plan import ChannelPlan
from spikeprune.shrink.shrink import shrink_told
from spikeprune.zoo.readout import LOSSES

_LATENCY_BATCH, _LATENCY_REPEATS = 32, 5


@final
@dataclass(frozen=True)
class Pruned:
    """The result of pruning, as record.json takes it, whether it was done in training or by `prune_once`.

    Args:
        masks, regrown: parameter name -> bool, of the network before it was shrunk.
        channels: group -> bool [C]; empty where single weights were pruned.
        rounds: one entry for each mask update, as `Pruner.rounds`.
        sparsity: the one that was reached, of weights or channels.
        seconds: time spent on pruning.
    """

    masks: dict[str, Tensor]
    regrown: dict[str, Tensor]
    channels: dict[str, Tensor]
    rounds: list[Round]
    sparsity: float
    seconds: float

    @classmethod
    def by(cls, pruner: Pruner, seconds: float) -> "Pruned":
        """The result of a Pruner that has made its mask updates."""
        masks, regrown = dict(pruner.masks), dict(pruner.regrown_alive)
        return cls(
            masks, regrown, pruner.channels, [Round.read(update) for update in pruner.rounds], pruner.sparsity, seconds
        )

    def record(self, plan: ChannelPlan) -> ChannelsRecord:
        """The part of record.json about channels: each group's size, how many are alive, and the layers that remain."""
        groups = {name: (len(alive), int(alive.sum())) for name, alive in self.channels.items()}
        before, after = (sum(pair[i] for pair in groups.values()) for i in (0, 1))
        return ChannelsRecord(before=before, after=after, groups=groups, layers=dict(plan.layers))


def prune_once(pruner: Pruner, network: TimedNetwork, data: Dataset, batch: int, device: torch.device) -> Pruned:
    """One mask update of a trained network, by evidence of the whole training set in eval mode, not augmented."""
    started = time.perf_counter()
    recorded, training = data.time_first, network.model.training
    network.model.eval()

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return LOSSES[network.loss](output if output.dim() == 3 else output.unsqueeze(0), target)

    with network.one_call(recorded):
        feed = batches(data, "train", batch, device=device)
        pruner.observe(((network.fed(x, recorded), target) for x, target in feed), loss)
        pruner.step()
    pruner.finish()
    network.model.train(training)
    return Pruned.by(pruner, time.perf_counter() - started)


def cut_out(network: TimedNetwork, masks: Mapping[str, Tensor], example: Tensor) -> tuple[TimedNetwork, ChannelPlan]:
    """A copy of the network without its pruned channels, and its plan.

    Args: example: one small batch, as the model takes it in one call.
    """
    small, plan = shrink_told(network.model, masks, example)
    return dataclasses.replace(network, model=small), plan


def example_of(network: TimedNetwork, data: Dataset, device: torch.device, images: int = 2) -> Tensor:
    """The first training images as the model takes them in one call; one time step for a model called step by step."""
    x, _ = next(batches(data, "train", images, device=device))
    return x[0] if data.time_first and network.takes == "step" else network.fed(x, data.time_first)


def latencies(networks: Sequence[TimedNetwork], data: Dataset, device: torch.device) -> tuple[int, list[float]]:
    """Images in a batch, and milliseconds of it for each network: medians of interleaved calls in plain PyTorch."""
    x, target = next(batches(data, "test", _LATENCY_BATCH, device=device))
    times: list[list[float]] = [[] for _ in networks]
    for network in networks:
        network.model.eval()
    with torch.no_grad():
        for repeat in range(_LATENCY_REPEATS + 1):  # the first one only warms up
            for network, own in zip(networks, times, strict=True):
                began = time.perf_counter()
                network(x, data.time_first)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                if repeat:
                    own.append(1000 * (time.perf_counter() - began))
    for network in networks:
        network.adapter.reset(network.model)
    return len(target), [statistics.median(own) for own in times]
