"""A preview of a run without training: the mask updates and the quotas as plain lines."""

import itertools
import math
from collections.abc import Mapping
from pathlib import Path

import torch

from spikeprune import data as datasets
from spikeprune.core.allocate import kept
from spikeprune.count.layers import floor_notes
from spikeprune.lab.recipe import Recipe
from spikeprune.lab.recipe.job import DataFacts, Job, resolve
from spikeprune.lab.recipe.squeeze_settings import SQUEEZE
from spikeprune.lab.recipe.timetable import turnover_of
from spikeprune.lab.train.network import build, connect, load_weights
from spikeprune.lab.train.notes import starved_of
from spikeprune.lab.train.parts import load_data, make_pruner
from spikeprune.prune.pruner import Pruner


def preview(recipe: Recipe) -> list[str]:
    """A preview of `run` without training: the mask updates and the quotas as plain lines.

    The sizes of built-in datasets are known without their files; data of the user's own is loaded.
    """
    name = recipe.data.name
    facts = datasets.facts_of(name)
    if facts is not None:
        classes, shape = facts.classes, facts.shape
        train_count = datasets.sizes(facts.train, recipe.data.limit, recipe.data.validation)[0]
    else:
        data = load_data(recipe)
        classes, shape, train_count = len(data.classes), data.shape, len(data.train)
    model = build(recipe.model, classes, recipe.T, shape, recipe.seed)
    if recipe.weights is not None:
        load_weights(model, recipe.weights)
    job = resolve(recipe, DataFacts(tuple(shape), classes, train_count), torch.device("cpu"), "fp32")
    laid_out, pruner = job.timetable, make_pruner(job, model)
    if recipe.pattern in ("channel", "gate"):
        return _preview_channels(job, pruner, model)
    total = {name: mask.numel() for name, mask in pruner.masks.items()}
    if recipe.method == SQUEEZE:
        return _preview_squeeze(job, sum(total.values()))
    events = pruner.preview()
    lines = [
        f"prunable weights: {sum(total.values())}",
        f"training images: {train_count}",
        f"steps per epoch: {laid_out.steps_per_epoch}",
        f"steps: {laid_out.steps}",
        f"events: {len(events)}",
    ]
    lines += [
        f"event {n}: step {event.step} target {event.target:.4f} kept {event.kept}" for n, event in enumerate(events, 1)
    ]
    if events:
        quota = pruner.quota(events[-1].target)
        lines += [f"quota {name}: {kept} of {total[name]}" for name, kept in quota.items()]
        lines += _quota_notes(recipe, quota, {name: tuple(mask.shape) for name, mask in pruner.masks.items()})
    return lines + _spacing_notes(job) + _method_notes(job)


_LIVES = 0.5  # mask updates that are closer than this share of a turnover cut nearly all that was regrown


def _spacing_notes(job: Job) -> list[str]:
    """Whether mask updates come too fast for regrown weights to live (docs/guide/training.md)."""
    steps, turnover = job.timetable.schedule.steps(), turnover_of(job.recipe)
    if not job.method.regrows or len(steps) < 2 or turnover is None:
        return []
    regrowth, every = job.method.regrowth(), min(after - before for before, after in itertools.pairwise(steps))
    if regrowth.grace or regrowth.start_value != "zero" or regrowth.share.value(1, len(steps)) == 0:
        return []
    if every >= _LIVES * turnover:
        return []
    return [
        f"note: Mask updates are {every:,} steps apart, and a weight turns over in {turnover:,.0f} steps at this "
        "learning rate and weight decay. Few regrown weights will outlive the next cut, so any rule of regrowth would "
        "give nearly the same network. More epochs, fewer mask updates, a higher --lr or --optim.weight-decay give "
        "them time (docs/guide/training.md, 'When regrown weights die')."
    ]


def _method_notes(job: Job) -> list[str]:
    """How the authors' rule changes the numbers above, and whether Early-Time has a choice."""
    recipe, notes = job.recipe, list[str]()
    if recipe.settings.get("rule") == "authors":
        notes.append(
            "note: rule authors keeps all that tie with the last one regrown, and all weights of a filter share a "
            "score, so a mask update may keep more than the number above; the record has the difference as `beyond`"
        )
    if recipe.T < 3 and getattr(job.method, "search_T", 1) is None:
        notes.append(
            f"note: Early-Time chooses among 2 to T - 1 time steps, so with T {recipe.T} it saves nothing; set "
            "--search_T 1 or a larger --T"
        )
    return notes


def _quota_notes(recipe: Recipe, quota: Mapping[str, int], shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Notes on the quotas: whether training changes them, and which layers they nearly cut through."""
    notes: list[str] = []
    if recipe.allocate == "global":
        weights = "initial weights" if recipe.weights is None else f"weights of {Path(recipe.weights).name}"
        notes.append(
            f"The quotas rank the {weights}. A global ranking is made anew at each event, so training will shift them; "
            "uniform and erk hold them."
        )
    # A quota does not say which outputs are fed: at most as many as it has weights.
    layers = {
        name: (kept, math.prod(shapes[name]), min(kept, shapes[name][0]), shapes[name][0])
        for name, kept in quota.items()
    }
    held = floor_notes({name: layer[:2] for name, layer in layers.items()}, recipe.floor)
    return [f"note: {note}" for note in [*notes, *starved_of(layers, recipe.floor, recipe.allocate), *held]]


def _preview_channels(job: Job, pruner: Pruner, model: torch.nn.Module) -> list[str]:
    """Preview for channel pruning. Channels are found by tracing a forward, so one is traced on random noise."""
    recipe, laid_out, facts = job.recipe, job.timetable, job.facts
    few = torch.rand(2 * recipe.T + 2, *facts.shape)
    network = connect(model, few, recipe.T, facts.classes, recipe.loss, False)
    pruner.trace(network.fed(few[:2]))
    before = laid_out.steps - laid_out.of("pruned").steps
    events = pruner.preview()
    lines = [
        f"prunable channels: {pruner.prunable}",
        f"training images: {facts.train}",
        f"steps per epoch: {laid_out.steps_per_epoch}",
        f"steps: {laid_out.steps}",
        f"events: {len(events)}",
    ]
    lines += [
        f"event {n}: step {before or event.step} target {event.target:.4f} kept {event.kept}"
        for n, event in enumerate(events, 1)
    ]
    if laid_out.finetune is not None:
        lines += [f"epochs before pruning: {laid_out.epochs - laid_out.finetune}", f"fine-tuning: {laid_out.finetune}"]
    if recipe.allocate == "global" or not events:  # fresh scales are all alike and would rank by chance
        return lines + [f"channels {name}: {len(alive)}" for name, alive in pruner.channels.items()]
    quota = pruner.quota(events[-1].target)
    return lines + [f"quota {name}: {kept} of {len(pruner.channels[name])}" for name, kept in quota.items()]


def _preview_squeeze(job: Job, prunable: int) -> list[str]:
    """The preview of the method squeeze, whose one mask update comes after the dense training."""
    recipe, laid_out = job.recipe, job.timetable
    before = 0 if recipe.weights is not None else laid_out.of("pretrain").steps
    after = laid_out.of("pruned").steps
    found = f"target {recipe.sparsity:.4f} kept {kept(prunable, recipe.sparsity)}"
    if recipe.squeeze.tolerance is not None or recipe.squeeze.masks is not None or recipe.budget != "weights":
        found = "target and kept as the tolerance, the masks or the budget say"
    return [
        f"prunable weights: {prunable}",
        f"training images: {job.facts.train}",
        f"steps per epoch: {laid_out.steps_per_epoch}",
        f"steps: {before + after}",
        "events: 1",
        f"event 1: step {before} {found}",
    ]
