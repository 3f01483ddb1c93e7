"""The parts of a run: its data, its network, its Pruner, and the network of a finished run."""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from spikeprune import data as datasets
from spikeprune.core.errors import UserError
from spikeprune.core.mask import disobeying
from spikeprune.lab.recipe import Recipe
from spikeprune.lab.recipe.job import Job
from spikeprune.lab.recipe.squeeze_settings import SQUEEZE
from spikeprune.lab.train.folder import RunFolder, read_safetensors
from spikeprune.lab.train.network import TimedNetwork, build, connect, load_weights
from spikeprune.model.prunable import prunable
from spikeprune.prune.pruner import Pruner
from spikeprune.shrink.plan import ChannelPlan

_SPARSE = 0.01  # share of zeros from which on a network counts as sparse
_log = logging.getLogger("spikeprune")


def load_data(recipe: Recipe) -> datasets.Dataset:
    """The recipe's data, split by its seed."""
    settings = recipe.data
    data = datasets.load(
        settings.name,
        settings.root,
        T=recipe.T,
        limit=settings.limit,
        seed=recipe.seed,
        validation=settings.validation,
        download=settings.download,
        test_limit=settings.test_limit,
    )
    given = {name: values for name in ("mean", "std") if (values := getattr(settings, name)) is not None}
    for name, values in given.items():
        if len(values) not in (1, data.shape[0]):
            raise UserError(
                f"data.{name} has {len(values)} numbers; {settings.name} has {data.shape[0]} channels, so give "
                f"{data.shape[0]} of them, one for all, or null"
            )
    return dataclasses.replace(data, **{name: tuple(values) for name, values in given.items()})


def make_network(recipe: Recipe, data: datasets.Dataset, device: torch.device) -> TimedNetwork:
    """The recipe's network with its initial weights, which depend on the seed or on `weights`."""
    classes = len(data.classes)
    model = build(recipe.model, classes, recipe.T, data.shape, recipe.seed)
    if recipe.weights is not None:
        load_weights(model, recipe.weights)
    model.to(device)
    example = next(datasets.batches(data, "train", 2 * recipe.T + 2, device=device))[0]
    return connect(model, example, recipe.T, classes, recipe.loss, data.time_first)


def set_layout(model: Any, form: torch.memory_format) -> None:
    """Sets the memory format in place. torch's stubs know no `Module.to` with a memory format alone."""
    model.to(memory_format=form)


def make_pruner(job: Job, model: torch.nn.Module) -> Pruner:
    """The job's Pruner, not yet attached."""
    recipe = job.recipe
    return Pruner(
        model,
        job.method,
        job.timetable.schedule,
        allocate=recipe.allocate,
        pattern=recipe.pattern,
        budget=recipe.budget,
        exclude=None if recipe.exclude is None else recipe.exclude.split(),
        regrow_exclude=None if recipe.regrow_exclude is None else recipe.regrow_exclude.split(),
        seed=recipe.seed,
        start=recipe.start,
        floor=1 if recipe.floor is None else recipe.floor,
        masks=zeros_to_start_from(job, model),
    )


def zeros_to_start_from(job: Job, model: torch.nn.Module) -> dict[str, torch.Tensor] | None:
    """Masks of the zeros of `weights`, if they are of a sparse network: its schedule rises from there.

    A few zeros by chance make no sparse network. A setting that takes no masks starts dense, which is logged.
    """
    recipe, exclude = job.recipe, job.recipe.exclude
    if recipe.weights is None or recipe.pattern != "weight" or recipe.method in ("dense", SQUEEZE):
        return None
    parameters = prunable(model, None, None if exclude is None else exclude.split())
    masks = {name: parameter.detach() != 0 for name, parameter in parameters.items()}
    total = sum(mask.numel() for mask in masks.values())
    sparsity = 1 - sum(int(mask.sum()) for mask in masks.values()) / total
    if sparsity < _SPARSE:
        return None
    if recipe.start != "dense" or recipe.budget != "weights" or job.method.acts:
        _log.warning(
            "the weights are sparse (%.3f), but budget=%s, start=%s, method=%s takes up no zeros, so they count as "
            "alive; a budget of weights, a dense start and a method that acts at mask updates alone keep them",
            sparsity, recipe.budget, recipe.start, recipe.method,
        )  # fmt: skip
        return None
    return masks


def restore(
    folder: RunFolder, recipe: Recipe, data: datasets.Dataset, device: torch.device, file: Path | None = None
) -> TimedNetwork:
    """A network of a finished run, from model.safetensors or another `file` of its folder."""
    path = file or folder.model
    model = build(recipe.model, len(data.classes), recipe.T, data.shape, recipe.seed)
    tensors = read_safetensors(path)
    bad = next((name for name, value in tensors.items() if bool(value.isnan().any())), None)
    if bad is not None:
        raise UserError(f"{path} holds nan (not a number) in {bad!r}; restore it, or run again with another --out")
    own = model.state_dict()
    if folder.plan.is_file() and any(name in own and own[name].shape != t.shape for name, t in tensors.items()):
        ChannelPlan.load(folder.plan).apply(model)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(f"{path} does not fit the network {recipe.model}; restore it or run again") from error
    if path == folder.model:
        _check_masks(folder, tensors)
    model.to(device)
    example = next(datasets.batches(data, "train", 2 * recipe.T + 2, device=device))[0]
    return connect(model, example, recipe.T, len(data.classes), recipe.loss, data.time_first)


def _check_masks(folder: RunFolder, tensors: Mapping[str, torch.Tensor]) -> None:
    """Raises: UserError if the folder's masks are missing, or are not those of its network."""
    stored = folder.read_masks(folder.read_record())
    masks = {n: m for n, m in stored.items() if n in tensors and tensors[n].shape == m.shape}
    found = disobeying(masks, tensors)
    if found:
        raise UserError(
            f"{sum(found.values())} weights of {folder.model} are not 0 although {folder.masks.name} cuts them (first "
            f"in {next(iter(found))!r}); restore both files, or run again"
        )
