"""Writes report.html: reads the run folder, puts its numbers into words and figures, and fills the template."""

import functools
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, final

from spikeprune.core.errors import UserError
from spikeprune.lab.page import figures, words
from spikeprune.lab.page.contents import with_contents
from spikeprune.lab.page.network import histogram, network_map
from spikeprune.lab.page.read import ShownRun, read_run
from spikeprune.lab.page.squeeze import raster_strips, squeeze_figures
from spikeprune.lab.recipe import complete, deciding, load, settings_hash, shipped
from spikeprune.lab.train.folder import RunFolder
from spikeprune.lab.train.notes import energy_note, run_notes
from spikeprune.record.spikes import SpikesRecord
from spikeprune.record.whole import write_whole

if TYPE_CHECKING:
    from jinja2 import Environment


@final
@dataclass(frozen=True)
class Tile:
    """One of the numbers at the top of the report: a factor, the two numbers behind it, and the share that is left."""

    label: str
    factor: str
    pruned: str
    dense: str
    share: float
    exact: str


@final
@dataclass(frozen=True)
class Words:
    """The sentences at the top of the report: headline, result and caution."""

    headline: str
    result: str
    caution: str


def write_report(run_folder: Path | str | RunFolder) -> Path:
    """Write `report.html` into a finished run's folder, anew if it is there; nothing else in the folder is touched.

    The page is one file that needs no network, and the same folder always gives the same page.

    Returns: the path of the page.
    Raises: UserError if the folder is no finished run, or naming the file in it that is missing or damaged.
    """
    folder = run_folder if isinstance(run_folder, RunFolder) else RunFolder.existing(run_folder)
    write_whole(folder.report, render(read_run(folder)).encode())
    return folder.report


@functools.cache
def _environment() -> "Environment":
    """Templates of this folder. Their output is escaped, and every name in them must exist."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("spikeprune.lab.page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "whole": words.whole,
        "percent": words.percent,
        "short": words.short,
        "energy": words.energy,
        "duration": words.duration,
    }
    return environment


def render(run: ShownRun) -> str:
    """The page as text."""
    template = _environment().get_template("report.html.j2")
    statistics = run.statistics.pruned if run.statistics is not None else None
    masks = RunFolder(run.path).read_masks(run.record)
    spikes = RunFolder(run.path).spikes
    rows = SpikesRecord.of_file(spikes).rows if spikes.is_file() and run.pruning else {}
    raster, raster_said = raster_strips(rows, "pruned")
    page = template.render(
        raster=raster,
        raster_said=raster_said,
        notes=list(map(words.bound, [*_data_notes(run), *run_notes(run.record, statistics, masks)])),
        beside_energy=words.bound(energy_note(statistics if run.pruning else None, masks)),
        run=run,
        record=run.record,
        first=_first_words(run),
        tiles=_tiles(run),
        timeline=figures.timeline(run) if run.epochs else None,
        layers=figures.layer_bars(run),
        columns=figures.columns(run),
        strips=figures.regrowth_strips(run),
        criticality=figures.criticality_rows(run),
        rates=figures.rate_bars(run),
        operations=figures.operation_bars(run),
        survival=_survival(run),
        most_regrown=_exact_if_small(max((max(r.regrown, r.rescued) for r in run.rounds), default=0)),
        channels=figures.channel_bars(run),
        races=figures.races(run),
        blocks=network_map(run, masks),
        histogram=histogram(run, masks),
        most_in_cell=figures.most_in_cell(run),
        chosen=_chosen(run),
        ledger=_ledger(run),
        squeezed=squeeze_figures(run.record),
        settings=_flat(run.settings),
        command=_command(run),
    )
    return with_contents(page)


def _data_notes(run: ShownRun) -> list[str]:
    """The notes of the data as sentences, without that of a limited test split, which `run_notes` has."""
    return [words.sentence(note) for note in run.record.data.notes if "(data.test_limit)" not in note]


def _chosen(run: ShownRun) -> str:
    """Why the network is that of this epoch."""
    best = run.record.best_epoch
    if not run.epochs or best is None:
        return ""
    pruned = [e for e in run.epochs if e.phase == "pruned"]
    at_end = [e for e in pruned if e.sparsity == pruned[-1].sparsity]
    found = next((e for e in pruned if e.epoch == best), None)
    if not run.validated or found is None:
        return f"The network is that of the last epoch, {best}: the run held no images out to choose by."
    return (
        f"The network is that of epoch {best}, the best on the validation split ({words.percent(run.accuracy(found))}) "
        f"of the {len(at_end)} epoch{'s' * (len(at_end) != 1)} at the final sparsity."
    )


def _first_words(run: ShownRun) -> Words:
    accuracy, images = run.record.accuracy, run.test_images
    of_images = f"{round(accuracy * images):,} of {images:,} test images"
    chance = 100 * words.standard_error(accuracy, images)
    caution = (
        f"One seed. On {images:,} test images chance alone moves an accuracy by about {chance:.2g} points "
        "(one standard error)."
    )
    if not run.pruning:
        headline = f"{words.percent(accuracy)} accuracy, nothing pruned"
        return Words(headline, f"The dense network is right on {of_images}.", caution)
    cut = "sparse" if run.unit == "weights" else "fewer channels"
    entry = run.record.squeeze
    left = f"{words.percent(run.sparsity, 1)} {cut}" if run.sparsity else "Nothing cut"
    if run.dense.accuracy is None:
        result = f"The pruned network is right on {of_images}. No dense network was trained beside it."
        return Words(f"{left}, {words.percent(accuracy)} accuracy", result, caution)
    if entry is not None:
        after = (
            f"after {entry.tuned_epochs} epochs of training with its zeros held"
            if entry.tuned_epochs
            else "without labels and without training"
        )
        result = (
            f"The squeezed network is right on {of_images}, {after}; the dense one on "
            f"{round(run.dense.accuracy * images):,}. The squeeze took {entry.images:,} calibration images of the "
            f"training split and {words.duration(entry.seconds)}."
        )
        return Words(f"{left}, {words.points(accuracy - run.dense.accuracy)} dense", result, caution)
    result = (
        f"The pruned network is right on {of_images}, the dense one on {round(run.dense.accuracy * images):,}, after "
        "as many epochs from the same initial weights."
    )
    return Words(f"{left}, {words.points(accuracy - run.dense.accuracy)} dense", result, caution)


def _tiles(run: ShownRun) -> list[Tile]:
    pruned, dense = run.pruned, run.dense
    rows = (
        (f"{run.unit.capitalize()} alive", "alive", _exact_if_small, "fewer"),
        ("Size", "bytes", lambda value: words.short(value, "B"), "less"),
        ("MACs an image", "macs", words.short, "fewer"),
        ("SynOps an image", "synops", words.short, "fewer"),
        ("Energy an image", "energy_pj", words.energy, "less"),
    )
    tiles = []
    for label, name, spelled, fewer in rows:
        small, large = getattr(pruned, name), getattr(dense, name)
        share = 100 * min(1.0, small / large) if large else 0.0
        exact = f"{small:,.0f} of {large:,.0f} ({name})"
        tiles.append(Tile(label, words.compared(large, small, fewer), spelled(small), spelled(large), share, exact))
    return tiles


def _exact_if_small(value: float) -> str:
    return words.whole(value) if value < 100_000 else words.short(value)


def _ledger(run: ShownRun) -> list[tuple[str, str, str, str]]:
    """(quantity, dense, pruned, factor), exact."""
    rows = []
    accuracy = "not measured" if run.dense.accuracy is None else words.percent(run.dense.accuracy)
    rows.append(("accuracy on the test split", accuracy, words.percent(run.record.accuracy), ""))
    stages, latency = run.record.stages, run.record.cost.latency_ms
    if stages is not None:
        rows.append(("accuracy before pruning", "", words.percent(stages.pretrained), ""))
        rows.append(("accuracy pruned, before fine-tuning", "", words.percent(stages.pruned), ""))
    if latency is not None:
        before, after = latency.before, latency.after
        label = f"milliseconds for {latency.batch} images, measured in plain PyTorch"
        rows.append((label, f"{before:,.1f}", f"{after:,.1f}", words.times(before, after)))
    for label, name, digits in (
        ("parameters, all", "parameters", 0),
        ("prunable weights alive", "alive", 0),
        ("bytes stored", "bytes", 0),
        ("MACs an image", "macs", 0),
        ("synaptic operations an image", "synops", 1),
        ("energy an image, pJ", "energy_pj", 1),
        ("spikes per neuron and step", "firing_rate", 5),
    ):
        dense, pruned = getattr(run.dense, name), getattr(run.pruned, name)
        rows.append((label, f"{dense:,.{digits}f}", f"{pruned:,.{digits}f}", words.times(dense, pruned)))
    return rows


def _survival(run: ShownRun) -> str:
    """A sentence on how many regrown weights survived the next cut.

    No cut follows the last mask update, so it does not count.
    """
    judged = [r for r in run.rounds if r.survived is not None]
    regrown, survived = sum(r.regrown for r in judged), sum(r.survived or 0 for r in judged)
    if not regrown:
        return "No later cut has judged them."
    share = f"{survived:,} of {regrown:,} ({words.percent(survived / regrown, 1)})"
    return f"Of the {run.unit} that they regrew, {share} survived the next cut."


def _flat(settings: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in settings.items():
        if isinstance(value, Mapping):
            rows += _flat(cast("Mapping[str, object]", value), f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", _plain(value)))
    return rows


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _command(run: ShownRun) -> str:
    """The shortest command that makes this run again: a shipped recipe and what differs from it.

    It counts only if it comes to the same hash of the settings; else the folder's own recipe.yaml is the command.
    """
    settings = run.settings
    try:
        recipe, given = (load(run.name) if run.name in shipped() else None), dict[str, Any]()
        # First what other settings follow from: phases scale with epochs, and a method brings its own settings.
        for keys in (("method", "epochs", "seed"), deciding(settings)):
            plain = deciding(complete(recipe)) if recipe else {}
            wanted = {key: settings[key] if key in settings else deciding(settings)[key] for key in keys}
            changed = {key: value for key, value in wanted.items() if plain.get(key, value) != value}
            if changed and recipe:
                given |= changed
                recipe = load(run.name, _options(given))
        if recipe and settings_hash(recipe) == run.record.settings_hash:
            if settings.data.root is not None:
                given["data.root"] = settings.data.root
            return shlex.join(["spikeprune", "run", run.name, *_options(given)])
    except (UserError, KeyError, TypeError):
        pass  # the recipe, its keys or a file of weights are others by now: the folder's own recipe stands for itself
    return "spikeprune run recipe.yaml --out again"


def _options(given: Mapping[str, Any]) -> list[str]:
    return [word for key, value in given.items() for word in (f"--{key}", _plain(value))]
