"""Measurements at the end of a run: the network's test score, its counts, and the activity of each layer."""

from collections.abc import Mapping

import torch
from torch import Tensor

from spikeprune import data as datasets
from spikeprune.count.counts import Counts, count
from spikeprune.lab.recipe import Recipe
from spikeprune.lab.train.layers import layer_statistics
from spikeprune.lab.train.network import TimedNetwork
from spikeprune.lab.train.score import Score, score
from spikeprune.record.run import DataRecord
from spikeprune.record.statistics import NetworkStatistics

# Spikes are counted on so many test images, in the order of the files.
_COUNTED = 1000


def counted(
    network: TimedNetwork,
    data: datasets.Dataset,
    recipe: Recipe,
    device: torch.device,
    masks: Mapping[str, Tensor] | None,
) -> tuple[Counts, NetworkStatistics]:
    """Counts and layer statistics on the first test images."""
    size, recorded = recipe.batch, data.time_first
    batches = datasets.batches(data, "test", size, device=device)
    few = [(network.fed(x, recorded), y) for (x, y), _ in zip(batches, range(0, _COUNTED, size), strict=False)]
    with network.one_call(recorded) as model:
        counts = count(model, few, masks)
        return counts, layer_statistics(network, [x for x, _ in few], counts)


def score_test(network: TimedNetwork, data: datasets.Dataset, recipe: Recipe, device: torch.device) -> Score:
    """The whole test split, in batches of the recipe's size."""
    return score(network, datasets.batches(data, "test", recipe.batch, device=device), data.time_first)


def data_record(data: datasets.Dataset) -> DataRecord:
    """The part of record.json about the data."""
    return DataRecord(
        name=data.name,
        counts=data.counts,
        shape=data.shape,
        classes=len(data.classes),
        checksum=data.checksum,
        published={True: "true", False: "false", None: "unknown"}[data.published],
        notes=tuple(data.notes),
        counted=min(_COUNTED, len(data.test)),
    )
