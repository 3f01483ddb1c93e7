"""The entry `squeeze` of record.json: what a squeeze did to each layer and each neuron, and what it took."""

from collections.abc import Mapping
from typing import final

from spikeprune.record.base import Count, Positive, Record, Share, recorded


@final
@recorded
class SqueezedLayerRecord(Record):
    """One prunable weight; see `SqueezedLayer`. `neuron`: the one it feeds, None for a classifier."""

    weights: Count
    alive: Count
    neuron: str | None
    rows: Count
    error: Positive | None
    seconds: Positive
    note: str


@final
@recorded
class SqueezedNeuronRecord(Record):
    """One neuron layer on the calibration images.

    Args:
        equal: share of its outputs that are as in the dense network.
        kept: share of the dense network's spikes that are still fired.
        rate_before, rate: spikes per neuron and time step, dense and squeezed.
    """

    equal: Share
    kept: Share
    rate_before: Positive
    rate: Positive


@final
@recorded
class ClassAccuracy(Record):
    """Right answers among the test images of one class, of the dense and of the final network."""

    name: str
    images: Count
    dense: Count
    pruned: Count


@final
@recorded
class RasterRows(Record):
    """Spikes of some neurons of one layer on one test image: bits [T, shown] in hexadecimal, row by row.

    Args:
        neurons: how many the layer has.
        shown: how many of them are kept, in equal distances.
    """

    T: Count
    neurons: Count
    shown: Count
    dense: str
    pruned: str


@final
@recorded
class SqueezeRecord(Record):
    """The part of record.json about a squeeze, under the key `squeeze`.

    Args:
        images: calibration images, of the training split.
        seed: of the draw of these images.
        tuned_epochs: of training with the zeros held.
        seconds, cpu_seconds: of the squeeze alone, wall clock and CPU time of the process.
        phases: where the seconds went.
        raster: neuron -> its spikes on one test image.
        notes: what could not be done as asked for.
    """

    images: Count
    seed: Count
    tuned_epochs: Count
    seconds: Positive
    cpu_seconds: Positive
    phases: Mapping[str, Positive]
    layers: Mapping[str, SqueezedLayerRecord]
    neurons: Mapping[str, SqueezedNeuronRecord]
    classes: tuple[ClassAccuracy, ...]
    raster: Mapping[str, RasterRows]
    notes: tuple[str, ...]
