"""The result of `count`: the cost of a network and of its layers, per sample. It prints as a table."""

from dataclasses import dataclass, field
from typing import final

from spikeprune.count import formulas, table


@final
@dataclass(frozen=True)
class Figures:
    """The cost of a network or of one layer; operations are per sample, summed over its time steps.

    Attributes:
        parameters: all parameters, biases and normalisation included, pruned ones too.
        alive: weights that are not pruned. For the network: of those that masks exist for.
        bytes: stored size. Dense: all values. Pruned: for each masked tensor one bit a value and the alive values.
        macs: multiply-accumulates of the weights (dense: all, pruned: alive) if every input were non-zero, padding
            included as is usual. Activity does not enter.
        acs: additions that the activity asks for: pairs of a non-zero input and a weight, where all inputs of the
            call are -1, 0 or 1.
        mac_ops: the same pairs where other inputs came, such as pixels or pooled spikes: a product each.
        firing_rate: spikes per neuron and time step: the share of output values that are not 0, so a graded output
            counts as one spike, and the rate is in [0, 1]. For a layer: non-zero values per input value, which is
            the rate of the neurons before it.
    """

    parameters: int
    alive: int
    bytes: int
    macs: float
    acs: float
    mac_ops: float
    firing_rate: float

    @property
    def synops(self) -> float:
        """Synaptic operations, acs + mac_ops."""
        return self.acs + self.mac_ops

    @property
    def energy_pj(self) -> float:
        """0.9 acs + 4.6 mac_ops, in picojoule (45 nm; memory, routing and neuron updates are left out)."""
        return formulas.energy_pj(self.acs, self.mac_ops)


@final
@dataclass(frozen=True)
class Sides:
    """The operations of the same activity, counted over every weight (`dense`) and over the alive weights (`pruned`).

    `outputs`: output values per sample over its time steps, which are neurons times steps; 0 where it is not known.
    """

    dense: Figures
    pruned: Figures
    outputs: float = 0.0


@final
@dataclass(frozen=True)
class Counts:
    """The result of `count`.

    Attributes:
        dense, pruned: the whole network.
        layers: name of each Conv and Linear layer, as in `named_modules`, -> its two sides.
        firing_rates: name of each neuron layer -> spikes per neuron and time step.
        samples: number of samples that the means are over.
        products: multiply-accumulates of products of two activations, as in attention, per sample. They stand beside
            the totals, which are about weights.
        uncounted: name of a weight -> the function that works with it and cannot be counted, such as 'gru_cell'. Its
            operations are in no total.

    Examples:
        >>> counts = sp.count(model, data)
        >>> counts.dense.macs  # T * (positions * weights), layer by layer
        25632.0
        >>> counts.pruned.synops <= counts.dense.macs
        True
    """

    dense: Figures
    pruned: Figures
    layers: dict[str, Sides]
    firing_rates: dict[str, float]
    samples: int
    products: float = 0.0
    uncounted: dict[str, str] = field(default_factory=dict[str, str])

    def __str__(self) -> str:
        return "\n".join(table.lines(self))

    def _repr_html_(self) -> str:
        return table.html(self)
