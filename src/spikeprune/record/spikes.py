"""spikes.json: which neurons fire on one test image, dense and pruned, for the report."""

from collections.abc import Mapping
from typing import Self, final

from spikeprune.record import schema
from spikeprune.record.base import Count, Record, recorded
from spikeprune.record.squeeze import RasterRows


@final
@recorded
class SpikesRecord(Record):
    """The whole of spikes.json: neuron -> its rows, on the first test image."""

    schema: Count
    rows: Mapping[str, RasterRows]

    @classmethod
    def read(cls, values: object, key: str = "") -> Self:
        """Reads the record and checks its version of the format."""
        found = super().read(values, key)
        schema.check(found.schema, "schema")
        return found
