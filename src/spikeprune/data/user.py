"""Data of the user's own: `package.module:loaders` becomes a `Source`, held in memory."""

import inspect
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from torch.utils.data import Dataset as TorchDataset

from spikeprune.core.errors import InvalidValue, UserError
from spikeprune.data.dataset import Dataset, Source, Split
from spikeprune.host.objects import resolve_object

_ACCEPTED = (
    "a spikeprune Dataset, or (train, test) or (train, validation, test) of torch Datasets, DataLoaders or "
    "(inputs, labels) tensor pairs"
)


def read_user(spec: str, *, root: Path | None, T: int, seed: int) -> Source:
    """Call the user's function and take its data into memory.

    The function gets those of `root`, `T` and `seed` that its signature names. Everything it returns is read once, in
    the order it comes (a shuffling DataLoader under a fixed seed): transforms with random draws would be frozen, so
    leave augmentation to the recipe's own `data.crop`, `data.flip` and `data.cutout`.

    8-bit inputs are images at scale 255, normalised by their own mean and standard deviation; other inputs are taken
    as they are, as float32. Samples of four dimensions [T, C, H, W] are recordings over time; a pair of tensors with
    five dimensions is time first, [T, N, C, H, W].

    Raises: InvalidValue for anything else, in terms of what came.
    """
    loaders = resolve_object(spec)
    if not callable(loaders):
        raise InvalidValue(f"{spec} must be a function that returns {_ACCEPTED}; got {type(loaders).__name__}")
    offered = {"root": root, "T": T, "seed": seed}
    try:
        wanted = inspect.signature(loaders).parameters
        returned = loaders(**{name: value for name, value in offered.items() if name in wanted})
    except UserError:
        raise
    except Exception as error:  # the user's function runs here, and may raise anything
        lines = str(error).splitlines() or [""]
        raise InvalidValue(f"{spec} failed: {type(error).__name__}: {lines[0][:200]}") from error
    if isinstance(returned, Dataset):
        return Source(
            train=returned.train,
            test=returned.test,
            validation=returned.validation,
            classes=returned.classes,
            scale=returned.scale,
            mean=returned.mean,
            std=returned.std,
            published=returned.published,
            notes=list(returned.notes),
        )
    if not isinstance(returned, tuple | list) or len(returned) not in (2, 3):
        raise InvalidValue(f"{spec} must return {_ACCEPTED}; got {_describe(returned)}")
    splits = [_materialise(spec, part) for part in returned]
    train, test = splits[0], splits[-1]
    eight_bit = train.inputs.dtype == torch.uint8
    return Source(
        train=train,
        test=test,
        validation=splits[1] if len(splits) == 3 else None,
        classes=_classes(returned[0], splits),
        scale=255.0 if eight_bit else 1.0,
        mean=None if eight_bit else (0.0,),
        std=None if eight_bit else (1.0,),
    )


def _materialise(spec: str, part: Any) -> Split:
    if isinstance(part, tuple | list) and len(part) == 2 and all(isinstance(p, Tensor) for p in part):
        inputs, labels = part
        return _split(spec, inputs, labels, time_first=inputs.dim() == 5)
    if isinstance(part, IterableDataset | TorchDataset):
        part = DataLoader(part, batch_size=256)
    if not isinstance(part, DataLoader):
        raise InvalidValue(f"{spec} must return {_ACCEPTED}; one part is {_describe(part)}")
    return _read_batches(spec, part)


def _read_batches(spec: str, loader: Iterable[Any]) -> Split:
    inputs: list[Tensor] = []
    labels: list[Tensor] = []
    time_first = False
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # a shuffling loader then gives the same order in every process
        try:
            for batch in loader:
                x, y = batch
                time_first = x.dim() == 5  # [N, T, C, H, W] unless a collate function put time first
                inputs.append(x.transpose(0, 1) if time_first and len(x) == len(y) else x)
                labels.append(y)
        except (TypeError, ValueError, AttributeError) as error:
            lines = str(error).splitlines() or [""]
            raise InvalidValue(
                f"reading {spec} failed: {type(error).__name__}: {lines[0][:120]}; "
                "each batch must be a pair of tensors (inputs, labels)"
            ) from error
    if not inputs:
        raise InvalidValue(f"{spec} returned a split without a single batch; every split needs samples")
    return _split(spec, torch.cat(inputs, dim=int(time_first)), torch.cat(labels), time_first=time_first)


def _split(spec: str, inputs: Tensor, labels: Tensor, *, time_first: bool) -> Split:
    if labels.dim() != 1 or labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise InvalidValue(
            f"{spec}: labels must be class numbers, whole and one per sample; "
            f"got shape {list(labels.shape)} of {labels.dtype}"
        )
    inputs = inputs.detach().cpu()
    if inputs.dtype != torch.uint8:
        inputs = inputs.float()
        if not inputs.isfinite().all():
            raise InvalidValue(f"{spec}: inputs hold nan or inf; clean them before they are returned")
    return Split(inputs.contiguous(), labels.detach().cpu().long(), time_first)


def _classes(part: Any, splits: list[Split]) -> tuple[str, ...]:
    """The names that the training data brings as `classes` (torchvision's convention), else the numbers."""
    names = getattr(getattr(part, "dataset", part), "classes", None)
    count = 1 + max(int(split.labels.max()) for split in splits if len(split))
    if isinstance(names, list | tuple) and len(names) >= count:
        return tuple(str(name) for name in names)
    return tuple(str(label) for label in range(count))


def _describe(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"{type(value).__name__} of {len(value)} ({', '.join(type(item).__name__ for item in value[:3])})"
    return type(value).__name__
