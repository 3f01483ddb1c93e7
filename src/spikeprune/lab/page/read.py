"""A finished run as its page shows it: the records of its folder, and the sizes of its layers from its masks."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

from spikeprune.core.pattern import unit_of
from spikeprune.lab.train.folder import RunFolder, read_safetensors
from spikeprune.record.base import Impossible, whole
from spikeprune.record.bench import BenchRecord
from spikeprune.record.epoch import Epoch, read_epochs
from spikeprune.record.round import Round
from spikeprune.record.run import NetworkRecord, RunRecord, RunSettings
from spikeprune.record.statistics import StatisticsRecord
from spikeprune.shrink.plan import ChannelPlan


@final
@dataclass(frozen=True)
class LayerSize:
    """A prunable weight. `neuron`: the layer of neurons that it feeds, None for the classifier, "" if unknown."""

    name: str
    weights: int
    alive: int
    neuron: str | None


@final
@dataclass(frozen=True)
class ShownRun:
    """All of a finished run that its page shows.

    Attributes:
        validated: whether the run held out a validation split; else the training accuracy is shown.
        layers: in the order of the model as far as the statistics tell it; the others follow by name.
        statistics, bench: None where the file is missing.
        channels: layer -> output channels before and after; empty where no channel was removed.
    """

    path: Path
    record: RunRecord
    epochs: tuple[Epoch, ...]
    validated: bool
    layers: tuple[LayerSize, ...]
    statistics: StatisticsRecord | None
    channels: Mapping[str, tuple[int, int]]
    bench: BenchRecord | None

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def dense(self) -> NetworkRecord:
        return self.record.dense

    @property
    def pruned(self) -> NetworkRecord:
        return self.record.pruned

    @property
    def sparsity(self) -> float:
        return self.record.sparsity

    @property
    def rounds(self) -> tuple[Round, ...]:
        return self.record.rounds

    @property
    def settings(self) -> RunSettings:
        return self.record.settings

    @property
    def pruning(self) -> bool:
        """Whether anything was pruned."""
        return self.settings.method != "dense"

    @property
    def unit(self) -> str:
        """The unit that is cut and regrown: weights or channels."""
        return unit_of(self.settings.pattern)

    @property
    def test_images(self) -> int:
        return self.record.data.counts["test"]

    def accuracy(self, epoch: Epoch) -> float:
        """On the validation split, or on the training images where there is none."""
        return epoch.val_accuracy if self.validated and epoch.val_accuracy is not None else epoch.train_accuracy


def read_run(folder: RunFolder) -> ShownRun:
    """Read what the page needs.

    Raises: UserError naming the file that is missing or damaged.
    """
    record = folder.read_record()
    statistics = StatisticsRecord.of_file(folder.statistics) if folder.statistics.is_file() else None
    feeds = {name: layer.neuron for name, layer in statistics.pruned.layers.items()} if statistics else {}
    # A squeeze without training after it has no epochs.
    epochs = () if record.squeeze is not None and not folder.metrics.is_file() else _epochs(folder.metrics)
    return ShownRun(
        path=folder.path,
        record=record,
        epochs=epochs,
        validated=all(epoch.val_accuracy is not None for epoch in epochs),
        layers=_layers(folder.masks, feeds),
        statistics=statistics,
        channels=ChannelPlan.load(folder.plan).layers if folder.plan.is_file() else {},
        bench=BenchRecord.of_file(folder.bench) if folder.bench.is_file() else None,
    )


def _epochs(path: Path) -> tuple[Epoch, ...]:
    epochs = read_epochs(path)
    with whole(path):
        if not any(epoch.phase == "pruned" for epoch in epochs):
            raise Impossible("it holds no epoch of the pruned run")
    return epochs


def _layers(path: Path, feeds: Mapping[str, str | None]) -> tuple[LayerSize, ...]:
    """The sizes of the layers, counted from a masks file, in the order of the model.

    Args: feeds: layer -> the neuron that it feeds, in the order of the model, from statistics.json.
    """
    order = {name: place for place, name in enumerate(feeds)}
    found = [
        (name.removesuffix(".weight"), mask.numel(), int(mask.count_nonzero()))
        for name, mask in read_safetensors(path).items()
        if mask.dim() > 1  # pruned channels mask normalisation and biases too
    ]
    found.sort(key=lambda layer: (order.get(layer[0], len(order)), layer[0]))
    return tuple(LayerSize(name, weights, alive, feeds.get(name, "")) for name, weights, alive in found)
