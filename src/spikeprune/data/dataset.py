"""A reader delivers a `Source`, and training receives a `Dataset`: splits, statistics and a checksum."""

import hashlib
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Int64, Shaped
from torch import Tensor

from spikeprune.core.errors import InvalidValue

SplitName = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Split:
    """Inputs and their labels, in memory.

    Args:
        inputs: [N, C, H, W] images (uint8 as stored, or float), [N, F] features, or with `time_first` recordings
            [T, N, C, H, W].
        labels: class numbers, int64.
        time_first: the first dimension is time, the second the sample.
    Raises: InvalidValue if the two do not belong together.
    """

    inputs: Shaped[Tensor, "..."]
    labels: Int64[Tensor, "N"]
    time_first: bool = False

    def __post_init__(self) -> None:
        if self.inputs.dim() < 2 + self.time_first:
            raise InvalidValue(
                f"inputs must be [N, C, H, W], [N, F] or, time first, [T, N, ...]; got shape {list(self.inputs.shape)}"
            )
        if self.inputs.shape[int(self.time_first)] != len(self.labels):
            what = "time first, [T, N, ...]" if self.time_first else "[N, ...]"
            raise InvalidValue(
                f"inputs {what} of shape {list(self.inputs.shape)} do not fit {len(self.labels)} labels; "
                "give one label for each sample"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample at one time step: (C, H, W) or (F,)."""
        return tuple(self.inputs.shape[1 + self.time_first :])

    def take(self, index: Int64[Tensor, "n"]) -> "Split":
        """The samples at `index`, a copy."""
        index = index.to(self.labels.device)
        inputs = self.inputs.index_select(int(self.time_first), index)
        return Split(inputs, self.labels.index_select(0, index), self.time_first)

    def to(self, device: torch.device | str) -> "Split":
        return Split(self.inputs.to(device), self.labels.to(device), self.time_first)


@dataclass(frozen=True)
class Dataset:
    """Data ready for training; `batches` gives x = (inputs / scale - mean) / std, per channel.

    Args:
        name: as in `names()`, or the user's `package.module:loaders`.
        train, validation, test: the splits; `validation` may be empty.
        classes: their names, in the order of the labels.
        scale: the input value that counts as 1 (255 for 8-bit pixels).
        mean, std: one per channel, or a single one for all, of the scaled training and validation inputs.
        checksum: SHA-256 over all decoded inputs and labels, before any limit; the same for every packing of the files.
        published: whether the files' md5 sums are the published ones; None where no published sum applies.
        notes: what a reader of the results has to know, such as absent images.
    Raises: InvalidValue for labels that are no class, or if the splits differ in the shape or type of their samples.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    classes: tuple[str, ...]
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    checksum: str = ""
    published: bool | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("train", "validation", "test"):
            split = self.split(name)
            check_labels(split.labels, len(self.classes), f"{self.name}, {name} split")
            if _kind(split) != _kind(self.train):
                raise InvalidValue(
                    f"{self.name}: the {name} split has samples of shape and type {_kind(split)}, the train split of "
                    f"{_kind(self.train)}; all splits must agree"
                )

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample at one time step: (C, H, W) or (F,)."""
        return self.train.shape

    @property
    def time_first(self) -> bool:
        """Whether the inputs are recordings [T, N, ...] that need no repetition over time."""
        return self.train.time_first

    @property
    def counts(self) -> dict[str, int]:
        return {"train": len(self.train), "validation": len(self.validation), "test": len(self.test)}

    def split(self, name: SplitName) -> Split:
        return {"train": self.train, "validation": self.validation, "test": self.test}[name]

    def to(self, device: torch.device | str) -> "Dataset":
        """A copy with every split on `device`, so that no batch has to be copied there."""
        moved = {"train": self.train, "validation": self.validation, "test": self.test}
        return replace(self, **{name: split.to(device) for name, split in moved.items()})


def _kind(split: Split) -> str:
    return f"{list(split.shape)} {split.inputs.dtype}{', time first' if split.time_first else ''}"


@dataclass
class Source:
    """The whole splits that a reader found in the files.

    `validation` is set only if the data has a split of its own for it.

    `mean` and `std` are measured on 8-bit images that bring none, after a division by `scale` (255 if not given). Float
    inputs that bring none are used as they are, or divided by `scale` if it is given.
    """

    train: Split
    test: Split
    classes: tuple[str, ...]
    validation: Split | None = None
    scale: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    published: bool | None = None
    notes: list[str] = field(default_factory=list)


def assemble(
    name: str, source: Source, *, limit: int | None, seed: int, validation: float, test_limit: int | None = None
) -> Dataset:
    """The dataset of a source: `limit` training samples, `validation` of them held out, `test_limit` test samples.

    The draws are stratified by class. The draws of training and validation depend on `seed` alone, and the draw of the
    test samples is the same for all seeds, so that runs stay comparable. A validation split of the data's own is used
    as it stands where one is asked for (`validation` > 0), and left alone otherwise.
    """
    own = source.validation if source.validation is not None and len(source.validation) else None
    whole = source.train
    if not len(whole) or not len(source.test):
        raise InvalidValue(
            f"{name}: the {'test' if len(whole) else 'training'} split holds no sample; look at the files"
        )
    checksum = digest(whole, *([own] if own else []), source.test)
    kept, held_out = sizes(len(whole), limit, 0.0 if own else validation)
    generator = torch.Generator().manual_seed(seed)
    if kept + held_out < len(whole):
        whole = whole.take(stratified(whole.labels, kept + held_out, generator)[0])
    if own:
        held, train = (own if validation else own.take(torch.arange(0))), whole
    elif held_out:
        chosen, rest = stratified(whole.labels, held_out, generator)
        held, train = whole.take(chosen), whole.take(rest)
    else:
        held, train = whole.take(torch.arange(0)), whole
    test, notes = _fewer(source.test, test_limit)
    scale, mean, std = _normalisation(source, whole)
    return Dataset(
        name=name,
        train=train,
        validation=held,
        test=test,
        classes=source.classes,
        scale=scale,
        mean=mean,
        std=std,
        checksum=checksum,
        published=source.published,
        notes=(*source.notes, *notes),
    )


def _normalisation(source: Source, whole: Split) -> tuple[float, tuple[float, ...], tuple[float, ...]]:
    """scale, mean and std of a source; measured for 8-bit inputs, 1, 0 and 1 for float inputs that bring none."""
    if source.mean is not None and source.std is not None:
        return (255.0 if source.scale is None else source.scale), source.mean, source.std
    if whole.inputs.is_floating_point():
        return (1.0 if source.scale is None else source.scale), (0.0,), (1.0,)
    scale = 255.0 if source.scale is None else source.scale
    return scale, *moments(whole, scale)


def _fewer(test: Split, limit: int | None) -> tuple[Split, tuple[str, ...]]:
    """The test samples that are scored, and a note if they are a part. All seeds get the same draw."""
    if limit is None:
        return test, ()
    if not 1 <= limit <= len(test):
        raise InvalidValue(f"data.test_limit must be 1 to {len(test)}, the number of test images; got {limit}")
    if limit == len(test):
        return test, ()
    chosen, _ = stratified(test.labels, limit, torch.Generator().manual_seed(0))
    said = f"only {limit:,} of the {len(test):,} test images are scored (data.test_limit); publish no such accuracy"
    return test.take(chosen), (said,)


def sizes(total: int, limit: int | None, validation: float) -> tuple[int, int]:
    """Numbers of training and validation samples out of `total`.

    min(total, limit) samples are taken; round(validation * taken) of them, but at least 1 if any, are held out.
    Raises: InvalidValue for a limit that cannot be met or that leaves nothing to train on.
    """
    if limit is not None and not 1 <= limit <= total:
        raise InvalidValue(f"data.limit must be 1 to {total}, the number of training images; got {limit}")
    if not 0 <= validation < 1:
        raise InvalidValue(f"data.validation must be a share in [0, 1), got {validation}; 0.1 holds out a tenth")
    taken = total if limit is None else limit
    held_out = max(1, round(validation * taken)) if validation else 0
    if held_out >= taken:
        raise InvalidValue(f"{taken} training images, {held_out} held out for validation, leave none; raise data.limit")
    return taken - held_out, held_out


def stratified(
    labels: Int64[Tensor, "N"], count: int, generator: torch.Generator
) -> tuple[Int64[Tensor, "count"], Int64[Tensor, "rest"]]:
    """`count` positions drawn at random with each class in proportion, and the other positions; both ascending.

    In a random order, the r-th sample of a class with n samples gets the key (r + 1/2) / n; the `count` smallest keys
    are taken, so a class contributes count * n / N samples, give or take one. Equal keys fall in the random order.
    """
    labels = labels.cpu()
    order = torch.randperm(len(labels), generator=generator)
    shuffled = labels[order]
    key = torch.empty(len(labels), dtype=torch.float64)
    for label in labels.unique():
        members = (shuffled == label).nonzero()[:, 0]
        key[members] = (torch.arange(len(members), dtype=torch.float64) + 0.5) / len(members)
    ranked = order[key.argsort(stable=True)]
    return ranked[:count].sort().values, ranked[count:].sort().values


def moments(split: Split, scale: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of 8-bit inputs / scale, over samples and space.

    Taken from a histogram of the 256 values, in whole numbers, so the result depends on no order of summation. A
    constant channel gets std 1.
    """
    sample = int(split.time_first)
    counts = torch.zeros(split.inputs.shape[sample + 1], 256, dtype=torch.int64)
    for part in split.inputs.split(4096, dim=sample):
        for channel, values in enumerate(part.cpu().unbind(sample + 1)):
            counts[channel] += torch.bincount(values.flatten(), minlength=256)
    share = counts.double() / counts.sum(1, keepdim=True)
    value = torch.arange(256, dtype=torch.float64) / scale
    mean = share @ value
    std = (share * (value - mean[:, None]).square()).sum(1).sqrt()
    return tuple(mean.tolist()), tuple(torch.where(std > 0, std, 1.0).tolist())


def digest(*splits: Split) -> str:
    """SHA-256 over type, shape and content of inputs and labels of the splits, in order."""
    total = hashlib.sha256()
    for split in splits:
        for tensor in (split.inputs, split.labels):
            total.update(f"{tensor.dtype} {list(tensor.shape)};".encode())
            total.update(tensor.cpu().contiguous().numpy().data)
    return total.hexdigest()


def check_labels(labels: Int64[Tensor, "N"], classes: int, where: str) -> None:
    """Raises: InvalidValue naming `where` if a label is not in 0 .. classes - 1."""
    wrong = (labels < 0) | (labels >= classes)
    if wrong.any():
        raise InvalidValue(
            f"{where}: label {int(labels[wrong][0])} is outside 0..{classes - 1}; the file is damaged or of other data"
        )
