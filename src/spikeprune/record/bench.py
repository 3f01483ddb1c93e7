"""bench.json: measured speed of a run's network on every engine at hand."""

from collections.abc import Mapping
from typing import Annotated, Self, final

from spikeprune.record import schema
from spikeprune.record.base import Count, Impossible, Positive, Record, Share, Within, optional, recorded

CLOCKS = {"cpu": "CPU time", "wall": "wall clock"}
Time = Annotated[float, Within(1e-12)]


@final
@recorded
class EngineTime(Record):
    """One engine at one batch size. `speedup` is over `opponent`, the fastest dense engine; both None for those."""

    batch: Count
    engine: str
    median_ms: Time
    low_ms: Positive
    high_ms: Positive
    images_per_s: Positive
    speedup: Positive | None
    opponent: str | None


@final
@recorded
class TimedThreads(Record):
    """All engines with one number of threads. `clock` is a key of `CLOCKS`."""

    threads: Count
    clock: str
    rows: tuple[EngineTime, ...]

    @classmethod
    def read(cls, values: object, key: str = "") -> Self:
        """Reads the record and checks that its clock is a known one."""
        found = super().read(values, key)
        if found.clock not in CLOCKS:
            raise Impossible(f"{key}.clock is {found.clock!r}, must be {' or '.join(CLOCKS)}")
        return found


@final
@recorded
class Measurement(Record):
    """The result of `runtime.bench.measure` with one number of threads, and the machine."""

    cpu: str
    flags: tuple[str, ...]
    isa: str
    threads: Count
    clock: str
    rows: tuple[EngineTime, ...]

    @property
    def timed(self) -> TimedThreads:
        """The part of bench.json for this number of threads."""
        return TimedThreads(threads=self.threads, clock=self.clock, rows=self.rows)


@final
@recorded
class BenchInputs(Record):
    """The inputs of the engines. `why_random`: the fault of the data, None if it was read."""

    kind: str
    count: Count
    shape: tuple[Count, ...]
    why_random: str | None


@final
@recorded
class BenchRecord(Record):
    """The whole of bench.json.

    Args:
        multiplies_kept: share of the multiplies of conv and linear layers.
        cpu, flags, isa: processor, its vector extensions, and the kernels that were used.
        load: of the machine over a minute; None where the system does not tell.
        same_class: engine -> share of the inputs that it puts in the model's class.
        accuracy: engine -> share of the test images that is right; None on random inputs.
        scored: number of these images, which data.test_limit may limit; None in files of version 0.1.
        int16_flipped: share of the spikes that differ.
        not_shrunk: why there is no smaller network to time; None if there is one.
    """

    schema: Count
    name: str
    model: str
    T: Count
    sparsity: Share
    multiplies_kept: Share
    inputs: BenchInputs
    cpu: str
    flags: tuple[str, ...]
    isa: str
    load: Positive | None
    versions: Mapping[str, str | None]
    repeats: Count
    same_class: Mapping[str, Share]
    accuracy: Mapping[str, Share] | None
    scored: Count | None = optional(default=None)
    int16_flipped: Share
    not_shrunk: str | None
    timings: tuple[TimedThreads, ...]

    @classmethod
    def read(cls, values: object, key: str = "") -> Self:
        """Reads the record; checks its version of the format and that it has times."""
        found = super().read(values, key)
        schema.check(found.schema, "schema")
        if not any(timing.rows for timing in found.timings):
            raise Impossible("timings holds no times")
        return found
