"""record.json: what a finished run was asked for, where it ran, what came out and what it cost."""

from collections.abc import Mapping, Sequence
from typing import Self, final

from spikeprune.record import schema
from spikeprune.record.base import Count, Impossible, Number, Positive, Record, Share, optional, recorded
from spikeprune.record.round import Round
from spikeprune.record.squeeze import SqueezeRecord

SPLITS = ("train", "validation", "test")


_ROUNDING = 1e-9  # by which two numbers of one record may differ


@final
@recorded
class DataKeys(Record):
    """The group `data` of the settings, as far as code reads it; the other keys stand in `extra`."""

    name: str
    root: str | None
    limit: Count | None = optional(default=None)
    test_limit: Count | None = optional(default=None)


@final
@recorded
class RunSettings(Record):
    """The recipe of a run, complete. Keys that code reads have fields; those of its method are in `extra`."""

    method: str
    model: str
    sparsity: Number
    regrow: Number
    allocate: str
    pattern: str
    budget: str
    start: str
    T: Count
    epochs: Count
    data: DataKeys


@final
@recorded
class Environment(Record):
    """The environment of a run. `versions`: package -> version, None if the package is not installed."""

    versions: Mapping[str, str | None]
    platform: str
    device: str
    device_type: str | None = optional(default=None)
    threads: Count
    precision: str
    git: str | None

    @classmethod
    def read(cls, values: object, key: str = "") -> Self:
        """Reads the record and checks that its versions name this package."""
        found = super().read(values, key)
        if not found.versions.get("spikeprune"):
            raise Impossible(f"{key}.versions.spikeprune is missing")
        return found


@final
@recorded
class DataRecord(Record):
    """The data that a run learned from. `counted`: test images that operations were counted on."""

    name: str
    counts: Mapping[str, Count]
    shape: tuple[Count, ...] | None = optional(default=None)
    classes: Count | None = optional(default=None)
    checksum: str
    published: str | None = optional(default=None)
    notes: tuple[str, ...]
    counted: Count

    @classmethod
    def read(cls, values: object, key: str = "") -> Self:
        """Reads the record and checks that each split has its number of images."""
        found = super().read(values, key)
        missing = [split for split in SPLITS if split not in found.counts]
        if missing:
            raise Impossible(f"{key}.counts.{missing[0]} is missing")
        return found


@final
@recorded
class ClassRecord(Record):
    """One class of the test split: how many images it has, and how many of them a network gets right."""

    name: str
    images: Count
    right: Count


@final
@recorded
class NetworkRecord(Record):
    """The dense or the pruned network; operations are per image.

    Args:
        accuracy: on the test split; None where it was not measured.
        parameters: all of the network, normalisation and biases included.
        alive: prunable weights (or channels) whose mask is True.
        bytes: stored size.
        firing_rate: share of the neurons' outputs, over all time steps, that are not 0; graded outputs count once.
        classes: the score of each class; None where it was not measured.
    """

    accuracy: Share | None
    parameters: Count
    alive: Count
    bytes: Count
    macs: Positive
    synops: Positive
    energy_pj: Positive
    firing_rate: Share
    classes: tuple[ClassRecord, ...] | None = optional(default=None)


@final
@recorded
class Latency(Record):
    """Milliseconds of one batch in plain PyTorch, of the whole and of the smaller network."""

    batch: Count
    before: Positive
    after: Positive


@final
@recorded
class Cost(Record):
    """The cost of a run. `search` counts up to the last change of a mask, the other numbers are totals."""

    epochs: Count
    seconds: Positive
    train_macs: Positive
    train_macs_effective: Positive
    pruning_seconds: Positive
    search_epochs: Positive
    search_seconds: Positive
    latency_ms: Latency | None = optional(default=None)
    dense_seconds: Positive | None = None


@final
@recorded
class ChannelsRecord(Record):
    """Channels before and after: in all, of each group, and of each layer of the smaller network."""

    before: Count
    after: Count
    groups: Mapping[str, tuple[Count, Count]]
    layers: Mapping[str, tuple[Count, Count]]


@final
@recorded
class Stages(Record):
    """Accuracy where a trained network was pruned once: before pruning, after it, and after fine-tuning."""

    pretrained: Share
    pruned: Share
    finetuned: Share


@final
@recorded
class RunRecord(Record):
    """The whole of record.json.

    Args:
        sparsity: 1 - alive / prunable, as achieved.
        rounds: the mask updates, in their order.
        best_epoch: the epoch whose weights were kept.
    """

    schema: Count
    name: str
    settings: RunSettings
    settings_hash: str
    seed: Count
    environment: Environment
    data: DataRecord
    dense: NetworkRecord
    pruned: NetworkRecord
    sparsity: Share
    density: Share
    rounds: tuple[Round, ...]
    best_epoch: Count | None = optional(default=None)
    cost: Cost
    status: str
    channels: ChannelsRecord | None = optional(default=None)
    stages: Stages | None = optional(default=None)
    squeeze: SqueezeRecord | None = optional(default=None)

    @classmethod
    def read(cls, values: object, key: str = "") -> Self:
        """Reads the record and checks what single fields cannot tell, such as an accuracy of the pruned network."""
        found = super().read(values, key)
        schema.check(found.schema, "schema")
        if found.pruned.accuracy is None:
            raise Impossible("pruned.accuracy is null, must be a finite number")
        if abs(found.density - (1 - found.sparsity)) > _ROUNDING:
            raise Impossible(f"density is {found.density}, must be 1 - sparsity = {1 - found.sparsity}")
        if found.pruned.alive > found.dense.alive:
            raise Impossible(f"pruned.alive is {found.pruned.alive}, of {found.dense.alive} prunable weights")
        _check_kept(found.rounds, found.dense.alive)
        return found

    @property
    def accuracy(self) -> float:
        """The accuracy of the pruned network on the test split."""
        assert self.pruned.accuracy is not None  # `read` has seen to it
        return self.pruned.accuracy


def _check_kept(rounds: Sequence[Round], units: int) -> None:
    """Raises: Impossible if a mask update kept more than there is; `units` is the number of prunable weights."""
    for at, update in enumerate(rounds):
        if update.kept > units:
            raise Impossible(f"rounds[{at}].kept is {update.kept}, of {units} prunable weights (or channels)")
