"""The result of a squeeze: masks, agreement with the dense network, and one row for each layer."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import final

from spikeprune.core.mask import Masks
from spikeprune.record.text import aligned


@final
@dataclass(frozen=True)
class SqueezedLayer:
    """One layer's weight before and after the squeeze.

    Attributes:
        name: of the parameter.
        weights, alive: how many there are, how many are kept.
        neuron: the neuron that the layer feeds, None for a classifier.
        rows: rows that the layer was solved on.
        error: sum of the squared errors of its outputs over the sum of their squares, weighted by criticality where the
            solve was; None where it was not solved.
        seconds: spent on solving the layer, over all rounds.
        note: "" or why something was done otherwise than asked for.
    """

    name: str
    weights: int
    alive: int
    neuron: str | None
    rows: int
    error: float | None
    seconds: float
    note: str = ""

    @property
    def density(self) -> float:
        """alive / weights."""
        return self.alive / self.weights


@final
@dataclass(frozen=True)
class SqueezedNeuron:
    """A neuron's spikes before and after, on the calibration data.

    Attributes:
        equal: share of its outputs that are as in the dense network.
        kept: share of the dense network's spikes that are still fired.
        rate_before, rate: spikes per neuron and time step, dense and squeezed.
    """

    equal: float
    kept: float
    rate_before: float
    rate: float


class SqueezeTable(list[SqueezedLayer]):
    """Rows that print as a table, with the neurons beside the layers and where the time went below."""

    def __init__(self, rows: list[SqueezedLayer], neurons: dict[str, SqueezedNeuron], phases: dict[str, float]) -> None:
        super().__init__(rows)
        self.neurons, self.phases = neurons, phases

    def __str__(self) -> str:
        head = ("layer", "weights", "alive", "density", "error", "spikes kept", "rate", "seconds", "feeds neuron", "")
        lines = aligned([head, *map(self._line, self)], left=(0, 8, 9))
        spent = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.phases.items())
        return "\n".join([*lines, f"time: {spent}"] if spent else lines)

    def _line(self, row: SqueezedLayer) -> tuple[str, ...]:
        neuron = self.neurons.get(row.neuron or "")
        return (
            row.name,
            f"{row.weights:,}",
            f"{row.alive:,}",
            f"{row.density:.4f}",
            "-" if row.error is None else f"{row.error:.4f}",
            "-" if neuron is None else f"{neuron.kept:.3f}",
            "-" if neuron is None else f"{neuron.rate_before:.3f} > {neuron.rate:.3f}",
            f"{row.seconds:.1f}",
            row.neuron or "-",
            row.note,
        )


@final
@dataclass(frozen=True)
class Squeezed:
    """The result of `sp.squeeze`.

    Attributes:
        masks: parameter name -> bool, True = alive, as `pruner.masks`.
        agreement: neuron name -> share of its outputs (spike or none) equal to the dense network's on the data.
        neurons: neuron name -> more about its spikes.
        layers: one entry per prunable weight.
        seconds: wall-clock time.
        phases: where it went.
        images: calibration images used.
        notes: what could not be done as asked for, one sentence each.

    Examples:
        >>> squeezed = sp.squeeze(model, data, 0.75)
        >>> squeezed.sparsity
        0.75
        >>> sorted(squeezed.agreement)  # share of equal spikes, by neuron
        ['2', '6']
    """

    masks: Masks
    agreement: dict[str, float]
    neurons: dict[str, SqueezedNeuron] = field(repr=False)
    layers: list[SqueezedLayer] = field(repr=False)
    seconds: float
    phases: dict[str, float]
    images: int
    notes: list[str]

    @property
    def sparsity(self) -> float:
        """1 - alive / prunable weights, exact."""
        return self.masks.sparsity

    def table(self) -> SqueezeTable:
        """A table with one row for each layer: its size, its error, its spikes and its seconds."""
        return SqueezeTable(self.layers, self.neurons, self.phases)

    def __repr__(self) -> str:
        mean = sum(self.agreement.values()) / len(self.agreement) if self.agreement else float("nan")
        kept = f"{self.masks.alive:,} of {self.masks.total:,} weights, sparsity {self.sparsity:.4f}"
        spikes = f", agreement {mean:.4f} over {len(self.agreement)} neuron layers" if self.agreement else ""
        spent = ", ".join(f"{name} {seconds:.1f}" for name, seconds in self.phases.items())
        return f"Squeezed({kept}{spikes}, {self.images} images, {self.seconds:.1f} s: {spent})"


def some_of(names: Iterable[str]) -> str:
    """A few of the names, for a message."""
    listed = sorted(names)
    return ", ".join(map(repr, listed[:3])) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")
