"""The finished part of a run of the method `squeeze`, for checkpoints and for the record."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

from torch import Tensor

from spikeprune.count.counts import Counts
from spikeprune.lab.recipe.job import Job
from spikeprune.lab.train.by_class import ClassScores
from spikeprune.lab.train.cost import PASSES, cost_of_one
from spikeprune.lab.train.loop import Phase
from spikeprune.record.checkpoint import PhasesState, SqueezeState
from spikeprune.record.run import Cost, NetworkRecord
from spikeprune.record.squeeze import ClassAccuracy, SqueezedLayerRecord, SqueezedNeuronRecord, SqueezeRecord
from spikeprune.record.statistics import NetworkStatistics
from spikeprune.squeeze.table import Squeezed


@final
@dataclass(frozen=True)
class Trained:
    """The dense training before the squeeze: its epochs, seconds and samples."""

    epochs: int
    seconds: float
    samples: float


@final
@dataclass(frozen=True)
class SqueezeDone:
    """The results of the squeeze.

    Args:
        dense, statistics, dense_scores: of the dense network.
        scores: of the squeezed one, before any training.
        before: the dense network's spikes on the stored images.
        entry: of the record, without classes and raster, which are of the final network.
    """

    trained: Trained
    dense: NetworkRecord
    statistics: NetworkStatistics
    dense_scores: ClassScores
    scores: ClassScores
    before: Mapping[str, Tensor]
    masks: dict[str, Tensor]
    entry: SqueezeRecord

    def state_dict(self) -> SqueezeState:
        """Plain types and tensors."""
        trained = self.trained
        return {
            "trained": {"epochs": trained.epochs, "seconds": trained.seconds, "samples": trained.samples},
            "dense": self.dense.as_dict(),
            "statistics": self.statistics.as_dict(),
            "scores": [[list(s.right), list(s.images)] for s in (self.dense_scores, self.scores)],
            "before": dict(self.before),
            "masks": dict(self.masks),
            "entry": self.entry.as_dict(),
        }

    @classmethod
    def from_state(cls, state: SqueezeState) -> "SqueezeDone":
        """Restores what `state_dict` returned."""
        dense_scores, scores = (ClassScores(tuple(right), tuple(images)) for right, images in state["scores"])
        return cls(
            trained=Trained(**state["trained"]),
            dense=NetworkRecord.read(state["dense"]),
            statistics=NetworkStatistics.read(state["statistics"]),
            dense_scores=dense_scores,
            scores=scores,
            before=state["before"],
            masks=state["masks"],
            entry=SqueezeRecord.read(state["entry"]),
        )


@final
@dataclass(frozen=True)
class _Nothing:
    """Before the squeeze nothing is over."""

    def state_dict(self) -> PhasesState:
        return {}


NOTHING_DONE = _Nothing()


def squeeze_record(found: Squeezed, seed: int, spent: tuple[float, float]) -> SqueezeRecord:
    """The part of record.json about a squeeze.

    Args:
        spent: seconds, and CPU seconds of the process.
    """
    layers = {
        layer.name: SqueezedLayerRecord(
            weights=layer.weights,
            alive=layer.alive,
            neuron=layer.neuron,
            rows=layer.rows,
            error=layer.error,
            seconds=layer.seconds,
            note=layer.note,
        )
        for layer in found.layers
    }
    neurons = {
        name: SqueezedNeuronRecord(equal=n.equal, kept=n.kept, rate_before=n.rate_before, rate=n.rate)
        for name, n in found.neurons.items()
    }
    return SqueezeRecord(
        images=found.images,
        seed=seed,
        tuned_epochs=0,
        seconds=spent[0],
        cpu_seconds=spent[1],
        phases=found.phases,
        layers=layers,
        neurons=neurons,
        classes=(),
        raster={},
        notes=tuple(found.notes),
    )


def class_records(names: Sequence[str], dense: ClassScores, pruned: ClassScores) -> tuple[ClassAccuracy, ...]:
    """Right answers of both networks in each class."""
    rows = zip(names, pruned.images, dense.right, pruned.right, strict=True)
    return tuple(ClassAccuracy(name=name, images=count, dense=was, pruned=now) for name, count, was, now in rows)


def cost_of_squeeze(job: Job, done: SqueezeDone, phase: Phase | None, counts: Counts) -> Cost:
    """The cost of the whole run: `search` counts up to the end of the squeeze, the other numbers are totals."""
    trained, seconds = done.trained, done.entry.seconds
    dense = PASSES * counts.dense.macs * trained.samples
    after = None if phase is None else cost_of_one(job.of("pruned"), phase, counts, done.masks)
    return Cost(
        epochs=trained.epochs + (0 if phase is None else phase.epoch),
        seconds=trained.seconds + seconds + (0.0 if phase is None else phase.seconds),
        train_macs=dense + (0.0 if after is None else after.train_macs),
        train_macs_effective=dense + (0.0 if after is None else after.train_macs_effective),
        pruning_seconds=seconds + (0.0 if after is None else after.pruning_seconds),
        search_epochs=float(trained.epochs),
        search_seconds=trained.seconds + seconds,
        latency_ms=None,
        dense_seconds=trained.seconds if trained.epochs else None,
    )
