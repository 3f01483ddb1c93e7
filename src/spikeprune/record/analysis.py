"""analysis.json: why a run came out as it did, alone, against other runs, and over seeds.

A number of one run is a number. Over seeds the same record holds a `Spread` in its place; coordinates such as an epoch
stay numbers. A number that does not exist is None.
"""

from collections.abc import Mapping
from typing import final

from spikeprune.record.base import Count, Number, Positive, Record, Share, optional, recorded

SCHEMA = 2


@final
@recorded
class Spread(Record):
    """One number of several runs: `each` in their order, None where a run lacks it; sd is None for n = 1."""

    each: tuple[Number | None, ...]
    n: Count
    mean: Number
    sd: Positive | None


Measured = float | Spread


@final
@recorded
class UpdateSurvival(Record):
    """The fate of the weights that one mask update brought back; see `mechanism.survival`."""

    step: Count | None
    regrown: Measured | None
    rescued: Measured | None
    survived: Measured | None
    rescued_share: Measured | None
    survived_share: Measured | None


@final
@recorded
class Survival(Record):
    """The fate of all regrown weights; see `mechanism.survival`."""

    events: tuple[UpdateSurvival, ...] | None
    regrown: Measured | None
    rescued: Measured | None
    survived: Measured | None
    survived_share: Measured | None
    alive_at_end: Measured | None
    to_end: Measured | None
    share_of_alive: Measured | None


@final
@recorded
class ClassConsistency(Record):
    """How alike a class's features are: for each figure a list over classes, and the mean over those that have it."""

    variance_train: tuple[Measured | None, ...] | None
    variance_test: tuple[Measured | None, ...] | None
    cosine: tuple[Measured | None, ...] | None
    cosine_centred: tuple[Measured | None, ...] | None
    mean_variance_train: Measured | None
    mean_variance_test: Measured | None
    mean_cosine: Measured | None
    mean_cosine_centred: Measured | None


@final
@recorded
class LayerConsistency(Record):
    """The consistency of one neuron layer; its figures are missing where no image was left."""

    neuron: str | None
    images_left_out: Measured | None
    variance_train: tuple[Measured | None, ...] | None = optional(default=None)
    variance_test: tuple[Measured | None, ...] | None = optional(default=None)
    cosine: tuple[Measured | None, ...] | None = optional(default=None)
    cosine_centred: tuple[Measured | None, ...] | None = optional(default=None)
    mean_variance_train: Measured | None = None
    mean_variance_test: Measured | None = None
    mean_cosine: Measured | None = None
    mean_cosine_centred: Measured | None = None


@final
@recorded
class Consistency(Record):
    """How alike a class's features are in each neuron layer (`LayerConsistency`), and the means over the layers."""

    layers: tuple[LayerConsistency, ...] | None
    mean_variance_train: Measured | None
    mean_variance_test: Measured | None
    mean_cosine: Measured | None
    mean_cosine_centred: Measured | None


@final
@recorded
class Importance(Record):
    """|w| over the layer's largest, of regrown weights that are alive at the end and of the other alive ones."""

    regrown: Measured | None
    others: Measured | None
    regrown_count: Measured | None
    others_count: Measured | None


@final
@recorded
class ImportanceOfDifference(Record):
    """The importance, by gamma or weight, of units that only one of two networks kept."""

    of: str | None
    only_this: Measured | None
    only_other: Measured | None
    only_this_count: Measured | None
    only_other_count: Measured | None


@final
@recorded
class EpochGap(Record):
    """Mean cross-entropy per image after an epoch, and validation less train. `recovery`: after the last update."""

    epoch: Count | None
    train_loss: Measured | None
    validation_loss: Measured | None
    gap: Measured | None
    recovery: bool | None


@final
@recorded
class Overfitting(Record):
    """The gap of losses by epoch, at the end, and as mean over recovery."""

    epochs: tuple[EpochGap, ...] | None
    final_gap: Measured | None
    recovery_gap: Measured | None


@final
@recorded
class Branching(Record):
    """How many spikes follow from one, by three estimates; see `avalanches.branching`."""

    pooled: Measured | None
    within: Measured | None
    ratio: Measured | None


@final
@recorded
class AvalancheSizes(Record):
    """The runs of time steps with spikes: how many, how large, and their exponents."""

    count: Measured | None
    cut_by_the_end: Measured | None
    mean_size: Measured | None
    mean_duration: Measured | None
    largest: Measured | None
    size_exponent: Measured | None
    duration_exponent: Measured | None


@final
@recorded
class LayerEntropy(Record):
    """One neuron layer: the entropy of its features in bits, its criticality, and their correlation over channels."""

    neuron: str | None
    entropy: Measured | None
    criticality: Measured | None
    correlation: Measured | None


@final
@recorded
class Activity(Record):
    """A network's spikes over time and from layer to layer."""

    T: Count | None
    images: Count | None
    spikes_per_image: Mapping[str, Measured | None] | None
    layer_ratio: tuple[Measured | None, ...] | None
    branching: Branching
    avalanches: AvalancheSizes
    layers: tuple[LayerEntropy, ...] | None = None
    mean_entropy: Measured | None = None


@final
@recorded
class CriticalityStates(Record):
    """Activity in three states of a run's network. `states` says what each is, `limits` what numbers cannot tell."""

    states: Mapping[str, str]
    limits: str
    before_pruning: Activity | None
    after_pruning: Activity | None
    after_regeneration: Activity | None


@recorded
class Mechanism(Record):
    """The measured effects of regrowth in one run, or in one arm over seeds. Abstract: a subclass says which."""

    accuracy: Measured | None
    survival: Survival | None
    consistency: Consistency
    importance: Importance | None
    overfitting: Overfitting
    criticality: CriticalityStates
    importance_of_difference: ImportanceOfDifference | None = optional(default=None)


@final
@recorded
class AgainstRun(Mechanism):
    """The effects of regrowth in a run that the analysed run is compared with."""

    run: str
    method: str
    seed: Count
    sparsity: Share


@final
@recorded
class SeedDifference(Record):
    """The difference of one quantity between two arms, paired by seed, with its 95 % t interval and the test's p."""

    seeds: tuple[Count, ...]
    each: tuple[Number, ...]
    n: Count
    mean: Number
    sd: Positive | None
    half: Positive | None
    p: Share | None


@final
@recorded
class PooledArm(Mechanism):
    """Runs that differ in the seed alone. `against`: the arms that the first one is set against."""

    arm: str
    seeds: tuple[Count, ...]
    runs: tuple[str, ...]
    difference: Mapping[str, SeedDifference | None] | None = optional(default=None)
    against: "tuple[PooledArm, ...] | None" = optional(default=None)


@final
@recorded
class AnalysisRecord(Mechanism):
    """The whole of analysis.json. `seeds` is None for a run that was analysed alone."""

    schema: Count
    run: str
    method: str
    seed: Count
    features: str
    images: Count
    against: tuple[AgainstRun, ...]
    seeds: PooledArm | None
