"""statistics.json: what the layers of the dense and the pruned network do on a few test images."""

from collections.abc import Mapping
from typing import Self, final

from spikeprune.record import schema
from spikeprune.record.base import Count, Impossible, Number, Positive, Record, Share, optional, recorded

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


@final
@recorded
class LayerOperations(Record):
    """Operations of one Conv or Linear layer per image, and the neuron layer that it feeds; None: it feeds none."""

    neuron: str | None
    macs: Positive
    acs: Positive
    mac_ops: Positive


@final
@recorded
class NeuronStatistics(Record):
    """One neuron layer.

    Args:
        firing_rate: spikes per neuron and time step: the share of its outputs that are not 0.
        criticality: the `QUANTILES` of its channels' criticality; None where no layer feeds it.
        peak: the surrogate's derivative at the threshold itself.
    """

    firing_rate: Share
    criticality: tuple[Number, ...] | None = optional(default=None)
    peak: Number | None = optional(default=None)

    @classmethod
    def read(cls, values: object, key: str = "") -> Self:
        """Reads the record and checks that there are as many values as quantiles."""
        found = super().read(values, key)
        if found.criticality is not None and len(found.criticality) != len(QUANTILES):
            raise Impossible(f"{key}.criticality has {len(found.criticality)} quantiles, must have {len(QUANTILES)}")
        return found


@final
@recorded
class NetworkStatistics(Record):
    """One network: its layers in the order of the model, and its neuron layers."""

    images: Count
    layers: Mapping[str, LayerOperations]
    neurons: Mapping[str, NeuronStatistics]


@final
@recorded
class StatisticsRecord(Record):
    """The whole of statistics.json. `dense` is None if the run trained no dense network."""

    schema: Count
    quantiles: tuple[Number, ...]
    dense: NetworkStatistics | None
    pruned: NetworkStatistics

    @classmethod
    def read(cls, values: object, key: str = "") -> Self:
        """Reads the record and checks its version of the format."""
        found = super().read(values, key)
        schema.check(found.schema, "schema")
        return found
