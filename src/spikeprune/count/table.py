"""`print(sp.count(...))`: the figures as a table, and below it what the figures do not say by themselves."""

from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING

from spikeprune.record.text import aligned

if TYPE_CHECKING:
    from spikeprune.count.figures import Counts

# Of a Loihi-1 model (SANA-FE): 33.6 pJ for a synaptic event, 72.8 pJ for a neuron and time step.
EVENTS_PER_UPDATE = 72.8 / 33.6
_SATURATED = 0.95
_HEADS = ("layer", "weights", "alive", "density", "MACs", "SynOps", "dense SynOps", "input rate")
_SHOWN = 4


def lines(counts: "Counts") -> list[str]:
    """The table as plain lines, then the energy and the notes."""
    return [*aligned([_HEADS, *_rows(counts)]), *_below(counts)]


def html(counts: "Counts") -> str:
    """The table of counts in HTML, which a notebook shows."""

    def row(cells: tuple[str, ...], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(row(cells, "td") for cells in _rows(counts))
    said = "".join(f"<p>{escape(line)}</p>" for line in _below(counts))
    return f"<table><thead>{row(_HEADS, 'th')}</thead><tbody>{body}</tbody></table>{said}"


def _rows(counts: "Counts") -> list[tuple[str, ...]]:
    sides = [*counts.layers.items()]
    rows: list[tuple[str, ...]] = []
    for name, side in sides:
        alive, figures = side.pruned.alive, side.pruned
        row = _row(name, side.dense.alive, alive, figures.macs, figures.synops, side.dense.synops)
        rows.append((*row, f"{figures.firing_rate:.4f}"))
    weights, alive = (sum(getattr(side, kind).alive for _, side in sides) for kind in ("dense", "pruned"))
    whole = counts.pruned
    return [*rows, (*_row("total", weights, alive, whole.macs, whole.synops, counts.dense.synops), "")]


def _row(name: str, weights: int, alive: int, macs: float, synops: float, dense: float) -> tuple[str, ...]:
    density = f"{alive / weights:.4f}" if weights else "-"
    return name, f"{weights:,}", f"{alive:,}", density, f"{macs:,.0f}", f"{synops:,.0f}", f"{dense:,.0f}"


def _below(counts: "Counts") -> list[str]:
    pruned, dense = counts.pruned, counts.dense
    said = [
        f"Per sample, mean of {counts.samples:,}. Spikes per neuron and time step: {pruned.firing_rate:.4f}.",
        f"Energy of the synapses: {pruned.energy_pj:,.0f} pJ, all weights alive {dense.energy_pj:,.0f} pJ "
        "(45 nm; 0.9 pJ an accumulate, 4.6 pJ a multiply-accumulate).",
    ]
    events = {name: side.pruned.synops / side.outputs for name, side in counts.layers.items() if side.outputs}
    if counts.uncounted:
        said.append(f"Not counted: {', '.join(f'{name} ({function})' for name, function in counts.uncounted.items())}.")
    return [*said, chip_note(events), *activity_notes(counts.firing_rates)]


def chip_note(events: Mapping[str, float]) -> str:
    """A note on what the energy figure leaves out, and on layers where cutting more weights saves no energy on a chip.

    A chip updates each neuron at every time step and routes each spike as a packet. The synaptic events of a layer cost
    less than these updates where

        alive fan-in * input spike rate < 2.2 synaptic events per neuron and step

    Args:
        events: layer -> synaptic events per neuron and time step.
    Source: constants of Loihi 1 (Davies et al. 2018) as SANA-FE models them: 33.6 pJ a synaptic event, 72.8 pJ a
        neuron and step; 72.8 / 33.6 = 2.2.
    """
    said = "On a neuromorphic chip neurons and packets cost energy too, which SynOps and the energy figure leave out."
    if not events:
        return said
    below = [f"{name} ({count:.2g})" for name, count in events.items() if count < EVENTS_PER_UPDATE]
    rule = f"{EVENTS_PER_UPDATE:.1f} (alive fan-in x input spike rate; constants of Loihi 1)"
    if not below:
        return (
            f"{said} Every layer here has more synaptic events per neuron and step than {rule}, so synapses dominate."
        )
    return (
        f"{said} Fewer weights alone save little in layers below {rule}: {_listed(below)}. "
        "There fewer spikes, neurons or time steps help."
    )


def activity_notes(firing_rates: Mapping[str, float]) -> list[str]:
    """Neuron layers that say nothing: those that never fire, and those that fire at nearly every step."""
    silent = [name for name, rate in firing_rates.items() if rate == 0]
    saturated = [f"{name} ({rate:.3f})" for name, rate in firing_rates.items() if rate >= _SATURATED]
    notes: list[str] = []
    if silent:
        notes.append(
            f"{len(silent)} of {len(firing_rates)} neuron layers never fire on this data: {_listed(silent)}. "
            "Nothing passes through them; prune less there (allocate='erk', a floor) or train longer."
        )
    if saturated:
        notes.append(
            f"{len(saturated)} of {len(firing_rates)} neuron layers fire at nearly every step: {_listed(saturated)}. "
            "They carry little information and cost a full input downstream."
        )
    return notes


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
