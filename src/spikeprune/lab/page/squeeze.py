"""The figures of a squeeze: layers and neurons before and after, one image's spikes, classes, seconds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch

from spikeprune.core.mask import unpack
from spikeprune.lab.page import words
from spikeprune.lab.page.figures import Bar
from spikeprune.record.run import RunRecord
from spikeprune.record.squeeze import ClassAccuracy, RasterRows, SqueezeRecord

# More classes cannot be compared at a glance: then those are shown that lost most.
_CLASSES = 20


@final
@dataclass(frozen=True)
class RasterStrip:
    """One layer's spikes on one image, as paths of unit squares: a column is a neuron, a row a time step.

    Attributes:
        width, T: columns and rows of each of the two strips.
        dense: spikes of the dense network.
        both, new: spikes of the squeezed network that the dense one fires too, and that it does not.
    """

    name: str
    note: str
    width: int
    T: int
    dense: str
    both: str
    new: str


@final
@dataclass(frozen=True)
class SqueezeFigures:
    """All figures of a squeeze; `classes_said` and `raster_said` are the sentences above theirs."""

    entry: SqueezeRecord
    layers: list[Bar]
    neurons: list[Bar]
    raster: list[RasterStrip]
    raster_said: str
    classes: list[Bar]
    classes_said: str
    phases: list[Bar]


def squeeze_figures(record: RunRecord) -> SqueezeFigures | None:
    """The figures, or None where the run did not squeeze."""
    entry = record.squeeze
    if entry is None:
        return None
    strips, said = raster_strips(entry.raster, "squeezed")
    shown = _shown(entry.classes)
    return SqueezeFigures(
        entry=entry,
        layers=_layers(entry),
        neurons=_neurons(entry),
        raster=strips,
        raster_said=said,
        classes=[_class(c) for c in shown],
        classes_said=_said(entry.classes, len(shown)),
        phases=_phases(entry.phases),
    )


def raster_strips(raster: Mapping[str, RasterRows], called: str) -> tuple[list[RasterStrip], str]:
    """A strip a layer, and a sentence on how many of the dense spikes the other network fires too."""
    strips = [(_strip(name, rows), _counts(rows)) for name, rows in raster.items()]
    fired, kept = (sum(counts[i] for _, counts in strips) for i in (0, 1))
    said = f"Of {fired:,} dense spikes shown, the {called} network fires {kept:,} too." if fired else ""
    return [strip for strip, _ in strips], said


def _layers(entry: SqueezeRecord) -> list[Bar]:
    def row(name: str) -> Bar:
        layer = entry.layers[name]
        cells = (
            words.whole(layer.alive),
            words.whole(layer.weights),
            "–" if layer.error is None else f"{layer.error:.4f}",
            f"{layer.seconds:.1f}",
        )
        note = layer.note or ("" if layer.neuron else "feeds no neuron")
        return Bar(name.removesuffix(".weight"), note, (("pruned", 100 * layer.alive / layer.weights),), cells)

    return [row(name) for name in entry.layers]


def _neurons(entry: SqueezeRecord) -> list[Bar]:
    return [
        Bar(
            name,
            "",
            (("pruned", 100 * neuron.kept),),
            (
                words.percent(neuron.kept, 1),
                words.percent(neuron.equal, 1),
                f"{neuron.rate_before:.4f}",
                f"{neuron.rate:.4f}",
            ),
        )
        for name, neuron in entry.neurons.items()
    ]


def _strip(name: str, rows: RasterRows) -> RasterStrip:
    dense, pruned = _spikes(rows)
    note = f"{rows.neurons:,} neurons" if rows.shown == rows.neurons else f"{rows.shown} of {rows.neurons:,} neurons"
    return RasterStrip(
        name, note, rows.shown, rows.T, _squares(dense), _squares(pruned & dense), _squares(pruned & ~dense)
    )


def _spikes(rows: RasterRows) -> tuple[torch.Tensor, torch.Tensor]:
    def read(text: str) -> torch.Tensor:
        bits = torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
        return unpack(bits, (rows.T, rows.shown))

    return read(rows.dense), read(rows.pruned)


def _counts(rows: RasterRows) -> tuple[int, int]:
    dense, pruned = _spikes(rows)
    return int(dense.sum()), int((dense & pruned).sum())


def _squares(spikes: torch.Tensor) -> str:
    return "".join(f"M{x} {t}h1v1h-1z" for t, x in spikes.nonzero().tolist())


def _lost(c: ClassAccuracy) -> float:
    return (c.dense - c.pruned) / c.images if c.images else 0.0


def _shown(classes: Sequence[ClassAccuracy]) -> list[ClassAccuracy]:
    seen = [c for c in classes if c.images]
    return seen if len(seen) <= _CLASSES else sorted(seen, key=_lost, reverse=True)[:_CLASSES]


def _class(c: ClassAccuracy) -> Bar:
    parts = (("dense", 100 * c.dense / c.images), ("pruned", 100 * c.pruned / c.images))
    cells = (words.percent(c.dense / c.images, 1), words.percent(c.pruned / c.images, 1), words.whole(c.images))
    return Bar(c.name, "", parts, cells)


def _said(classes: Sequence[ClassAccuracy], shown: int) -> str:
    seen = [c for c in classes if c.images]
    worst = max(seen, key=_lost, default=None)
    if worst is None:
        return ""
    text = (
        f"Class {worst.name} lost most: {worst.dense:,} of {worst.images:,} images are right in the dense network, "
        f"{worst.pruned:,} in the squeezed one."
        if _lost(worst) > 0
        else "No class lost an image on balance."
    )
    return text if shown == len(seen) else f"{text} The {shown} of {len(seen)} classes that lost most are shown."


def _phases(phases: Mapping[str, float]) -> list[Bar]:
    total = sum(phases.values()) or 1.0
    return [
        Bar(name, "", (("pruned", 100 * s / total),), (f"{s:.1f} s", words.percent(s / total, 0)))
        for name, s in phases.items()
    ]
