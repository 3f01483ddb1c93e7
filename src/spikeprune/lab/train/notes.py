"""Warnings for readers of a run's numbers: collapse, chance, and what the energy figure leaves out."""

import math
from collections.abc import Mapping

from torch import Tensor

from spikeprune.count.layers import fed_outputs, floor_notes, is_starved
from spikeprune.count.table import activity_notes, chip_note
from spikeprune.record.run import RunRecord
from spikeprune.record.statistics import NetworkStatistics

_ERRORS = 3  # standard errors above chance that count as chance
_SHOWN = 4


def run_notes(
    record: RunRecord, statistics: NetworkStatistics | None, masks: Mapping[str, Tensor] | None = None
) -> list[str]:
    """Sentences for the terminal and the report; none where everything is in order.

    Args:
        statistics: of the pruned network.
        masks: parameter name -> bool, as in masks.safetensors.
    """
    notes = [*part_note(record), *chance_note(record.accuracy, record.data.classes, record.data.counts["test"])]
    if statistics is not None:
        notes += activity_notes({name: neuron.firing_rate for name, neuron in statistics.neurons.items()})
    starved = starved_notes(masks or {}, _floor(record), record.settings.allocate)
    return notes + beyond_note(record) + starved + _floor_notes(record, masks or {})


def _floor_notes(record: RunRecord, masks: Mapping[str, Tensor]) -> list[str]:
    """Layers at their floor. A floor of channels is no number of weights."""
    if record.settings.pattern in ("channel", "gate"):
        return []
    layers = {n.removesuffix(".weight"): (int(m.sum()), m.numel()) for n, m in masks.items() if m.dim() > 1}
    return floor_notes(layers, _floor(record))


def _floor(record: RunRecord) -> float | None:
    floor = record.settings.extra.get("floor")
    return floor if isinstance(floor, int | float) else None


def part_note(record: RunRecord) -> list[str]:
    """Whether a part of the test split was scored."""
    if record.settings.data.test_limit is None:
        return []
    return [
        f"Only {record.data.counts['test']:,} test images were scored (data.test_limit). That is for trying things; "
        "publish an accuracy of the whole test split."
    ]


def beyond_note(record: RunRecord) -> list[str]:
    """One line if rule "authors" kept more or fewer weights than the last mask update's target; else an empty list."""
    last = record.rounds[-1] if record.rounds else None
    if last is None or not last.beyond:
        return []
    difference = f"{abs(last.beyond):,} {'more' if last.beyond > 0 else 'fewer'}"
    return [
        f"The rule 'authors' kept {last.kept:,}, which is {difference} than the target, "
        "because it keeps or cuts all that tie; rule 'exact' meets the target."
    ]


def chance_note(accuracy: float, classes: int | None, images: int) -> list[str]:
    """Whether a network that guesses would do as well."""
    if not classes or classes < 2:
        return []
    chance = 1 / classes
    if accuracy > chance + _ERRORS * math.sqrt(chance * (1 - chance) / max(1, images)):
        return []
    return [
        f"The accuracy of {accuracy:.2%} is that of guessing among {classes} classes ({chance:.2%}), so the other "
        "figures describe a network that does nothing; prune less, train longer, or try --allocate erk."
    ]


def starved_notes(masks: Mapping[str, Tensor], floor: float | None = None, allocate: str = "global") -> list[str]:
    """Layers of which most outputs have no input left."""
    layers = {
        name: (int(mask.sum()), mask.numel(), fed_outputs(mask), mask.shape[0])
        for name, mask in masks.items()
        if mask.dim() > 1
    }
    return starved_of(layers, floor, allocate)


def starved_of(
    layers: Mapping[str, tuple[int, int, int, int]], floor: float | None = None, allocate: str = "global"
) -> list[str]:
    """The warning about starved layers, and what prevents it beyond the settings of the run.

    Args:
        layers: name -> (alive, weights, outputs that have an input left, outputs).
        floor, allocate: the settings of the run; neither is advised a second time.
    """
    few = [
        f"{name.removesuffix('.weight')} keeps {alive:,} of {weights:,} weights for {outputs:,} outputs"
        + (f", {fed:,} of which have an input left" if fed < min(alive, outputs) else "")
        for name, (alive, weights, fed, outputs) in layers.items()
        if is_starved(alive, weights, fed, outputs)
    ]
    if not few:
        return []
    more = f" and {len(few) - _SHOWN} more layers" if len(few) > _SHOWN else ""
    held = f"a higher floor than {floor:g}" if floor else "a floor (--floor 0.02)"
    if allocate == "global":
        advice = f"A global ranking starves layers with small weights; {held}, --allocate erk or lamp prevents it."
    else:
        advice = f"{held[0].upper()}{held[1:]} or a lower sparsity prevents it."
    return [f"Nearly cut through: {'; '.join(few[:_SHOWN])}{more}. {advice}"]


def energy_note(statistics: NetworkStatistics | None, masks: Mapping[str, Tensor]) -> str:
    """The note beside the energy figure: neurons and packets cost energy too, and more cuts may save nothing.

    Synaptic events per neuron and step = alive fan-in * SynOps / MACs of the layer.
    """
    events: dict[str, float] = {}
    for name, layer in (statistics.layers if statistics is not None else {}).items():
        mask = masks.get(f"{name}.weight")
        if mask is not None and layer.macs and layer.neuron is not None:
            fan_in = float(mask.sum()) / mask.shape[0]
            events[name] = (layer.acs + layer.mac_ops) / layer.macs * fan_in
    return chip_note(events)
