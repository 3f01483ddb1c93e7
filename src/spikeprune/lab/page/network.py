"""The network at a glance, from the files of a run: a map of its layers, and a histogram of its weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from spikeprune.count.layers import fed_outputs, is_starved
from spikeprune.lab.page import words
from spikeprune.lab.page.read import ShownRun
from spikeprune.lab.train.folder import RunFolder, read_safetensors

_BINS = 61
_SILENT = 0.0


@final
@dataclass(frozen=True)
class MapBlock:
    """A layer: `width` in weights, `fill` in percent of them alive, `shade` of its firing rate in [0, 1].

    Attributes:
        dead: nothing passes: its neurons never fire, or most of its outputs have no input left.
        frames: percent alive after each mask update, from 100; empty where that was not recorded.
    """

    name: str
    width: float
    fill: float
    shade: float
    dead: str
    rate: str
    text: str
    frames: tuple[float, ...]


@final
@dataclass(frozen=True)
class Histogram:
    """Shares of the weights by value, as paths in a box of 100 x 100; `low` and `high` are the ends of the axis."""

    curves: tuple[tuple[str, str], ...]
    low: str
    high: str
    said: str


def network_map(run: ShownRun, masks: Mapping[str, Tensor]) -> list[MapBlock]:
    """One block for each layer, in the order of the model."""
    rates = (
        {name: neuron.firing_rate for name, neuron in run.statistics.pruned.neurons.items()} if run.statistics else {}
    )
    most = max(rates.values(), default=0.0) or 1.0

    def block(name: str, weights: int, alive: int, neuron: str | None) -> MapBlock:
        rate = rates.get(neuron or "")
        mask = masks.get(f"{name}.weight")
        dead = "silent" if rate == _SILENT else ""
        if mask is not None and is_starved(alive, weights, fed_outputs(mask), mask.shape[0]):
            dead = dead or "starved"
        text = f"{name}: {alive:,} of {weights:,} weights alive ({words.percent(alive / weights)})"
        text += f"; {rate:.4f} spikes per neuron and step" if rate is not None else ""
        return MapBlock(
            name, weights, 100 * alive / weights, (rate or 0.0) / most, dead,
            "" if rate is None else f"{rate:.3f}", text, _frames(run, name, weights),
        )  # fmt: skip

    return [block(layer.name, layer.weights, layer.alive, layer.neuron) for layer in run.layers]


def _frames(run: ShownRun, name: str, weights: int) -> tuple[float, ...]:
    kept = [(update.layers or {}).get(f"{name}.weight") for update in run.rounds]
    known = [layer.kept for layer in kept if layer is not None]
    if run.unit != "weights" or not known or len(known) != len(kept):
        return ()
    return (100.0, *(100 * count / weights for count in known))


def histogram(run: ShownRun, masks: Mapping[str, Tensor]) -> Histogram | None:
    """Histograms of the alive weights of the pruned network and of the dense one, if that was saved.

    None if the pruned network was not saved, nothing was pruned, or it has fewer weights than bins.
    """
    folder = RunFolder(run.path)
    if not folder.model.is_file() or not run.pruning:
        return None
    pruned = _values(read_safetensors(folder.model), masks)
    dense = _values(read_safetensors(folder.dense), None, masks) if folder.dense.is_file() else None
    if pruned is None or pruned.numel() < _BINS:
        return None
    both = [("dense", dense)] if dense is not None else []
    sides = [*both, ("pruned", pruned)]
    end = max(float(torch.quantile(_some(values).abs(), 0.999)) for _, values in sides) or 1.0
    curves = [(kind, torch.histc(values.clamp(-end, end), _BINS, -end, end) / values.numel()) for kind, values in sides]
    most = max(float(shares.max()) for _, shares in curves)
    medians = [f"{float(_some(values).abs().median()):.3g} {kind}" for kind, values in sides]
    return Histogram(
        curves=tuple((kind, _area((shares / most).tolist())) for kind, shares in curves),
        low=f"{-end:.2g}",
        high=f"{end:.2g}",
        said=f"Median size of a weight: {', '.join(medians)}. Each curve shows shares of its own network's weights.",
    )


def _values(
    tensors: Mapping[str, Tensor], alive: Mapping[str, Tensor] | None, names: Mapping[str, Tensor] | None = None
) -> Tensor | None:
    found: list[Tensor] = []
    for name, mask in (names or alive or {}).items():
        weight = tensors.get(name)
        if mask.dim() > 1:
            if weight is None or weight.shape != mask.shape:
                return None
            found.append(weight[mask].float() if alive is not None else weight.flatten().float())
    values = torch.cat(found) if found else None
    return None if values is None or not bool(torch.isfinite(values).all()) else values


def _some(values: Tensor) -> Tensor:
    """At most two million of the values, evenly spaced: `torch.quantile` takes no more than 16 million."""
    return values[:: max(1, values.numel() // 1_000_000)]


def _area(heights: Sequence[float]) -> str:
    step = 100 / len(heights)
    tops = "".join(f"L{n * step:.2f} {100 - 96 * h:.2f}H{(n + 1) * step:.2f}" for n, h in enumerate(heights))
    return f"M0 100{tops}L100 100Z"
