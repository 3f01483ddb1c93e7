"""Finds the datasets, so that a new one is one file and nothing else is edited.

They are the files of this folder, those of the folders that the environment's SPIKEPRUNE_DATASETS names (as PATH
does), and the entry points `spikeprune.datasets` of other packages. Each file registers a reader:

    @register(
        "my-letters",
        facts=Facts((1, 28, 28), 10, train=60_000, test=10_000),
        cite="Clanuwat et al. 2018, arXiv:1812.01718",
        license="CC BY-SA 4.0",
    )
    def read(request: Request) -> Source:
        return read_idx(request, folders=("letters",))

The formats are read by the functions of `data/formats`.
"""

import functools
import importlib.metadata
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

from spikeprune.core.errors import InvalidValue, unknown
from spikeprune.data.dataset import Source
from spikeprune.host.plugins import import_folders, import_siblings


@final
@dataclass(frozen=True)
class Facts:
    """Published sizes of a dataset, known before a file is read; a part of its samples is accepted and stated.

    Args:
        shape: (C, H, W) of one sample at one time step, or (F,) of a sample of F features.
        classes: number of classes.
        train, test: number of samples.
        names: of the classes, where they are part of the definition.
        time_first: the samples are recordings over time, [T, N, C, H, W].
    Raises: InvalidValue for sizes below 1, and for names that are not as many as the classes.
    """

    shape: tuple[int, int, int] | tuple[int]
    classes: int
    train: int
    test: int
    names: tuple[str, ...] = ()
    time_first: bool = False

    def __post_init__(self) -> None:
        if len(self.shape) not in (1, 3) or min(*self.shape, self.classes, self.train, self.test) < 1:
            raise InvalidValue(
                "facts of a dataset need shape (C, H, W), or (F,) for features, and sizes of at least 1; got shape "
                f"{self.shape}, {self.classes} classes, {self.train} training and {self.test} test samples"
            )
        if self.names and len(self.names) != self.classes:
            raise InvalidValue(
                f"facts of a dataset give {len(self.names)} class names for {self.classes} classes; "
                "give one for each, or none"
            )

    @property
    def image(self) -> tuple[int, int, int]:
        """The shape of an image. Raises: InvalidValue for a sample of features."""
        if len(self.shape) == 1:
            raise InvalidValue(
                f"this reader needs images, and the facts say features of shape {self.shape}; "
                "give Facts a shape (C, H, W)"
            )
        return self.shape

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes, or their numbers where they have none."""
        return self.names or tuple(str(label) for label in range(self.classes))

    def absent(self, train: int, test: int) -> list[str]:
        """Notes that state which part of the published samples is there; none where all are."""
        return [
            f"{have:,} of {published:,} {split} samples present"
            for split, have, published in (("training", train, self.train), ("test", test, self.test))
            if have != published
        ]


@final
@dataclass(frozen=True)
class Request:
    """The request that a reader gets.

    Args:
        known: the dataset's own registration.
        root: folder that holds the files. A dataset without files ignores it.
        T: number of frames that recordings are gathered into.
    """

    known: "KnownDataset"
    root: Path
    T: int

    @property
    def name(self) -> str:
        return self.known.name

    @property
    def facts(self) -> Facts:
        """Sizes and classes that the dataset was registered with. Raises: InvalidValue if it was registered without."""
        if self.known.facts is None:
            raise InvalidValue(
                f"{self.name} is registered without facts, which its reader needs; pass facts=Facts(...)"
            )
        return self.known.facts

    def published(self, file: str, md5: str) -> bool | None:
        """Whether a file's md5 sum is the registered one; None if none is registered for a file of this name."""
        return self.known.checksums[file] == md5 if file in self.known.checksums else None


Reader = Callable[[Request], Source]


@final
@dataclass(frozen=True)
class KnownDataset:
    """One registration.

    Args:
        name: for `--data.name`.
        read: reads the files of a request.
        facts: sizes known beforehand; None where the folder decides them, so that only its path tells the data apart.
        cite: the publication.
        license: of the data, or what is known of it.
        home: where the files come from.
        torchvision: the class of torchvision.datasets that downloads it; None if there is none.
        checksums: name of a file -> its published md5 sum. They are recorded, never required.
        needs_files: False if the data comes with an installed package.
    """

    name: str
    read: Reader
    facts: Facts | None
    cite: str
    license: str
    home: str
    torchvision: str | None
    checksums: Mapping[str, str] = field(default_factory=dict[str, str])
    needs_files: bool = True

    def __post_init__(self) -> None:
        plain = self.name.replace("-", "").isalnum() and self.name == self.name.lower()
        if not plain or not self.cite or not self.license:
            raise InvalidValue(
                f"the dataset {self.name!r} is not registered: its name takes a-z, 0-9 and '-', and it needs cite and "
                f"license; got cite {self.cite!r}, license {self.license!r}"
            )

    def check(self, source: object) -> Source:
        """Compares the reader's result with the registration and returns it.

        Raises: InvalidValue, which names the registration, if the two differ.
        """
        if not isinstance(source, Source):
            raise InvalidValue(f"the reader of {self.name} must return a Source, got {type(source).__name__}")
        named: object = source.classes
        if not isinstance(named, tuple) or not all(isinstance(each, str) for each in named):
            raise InvalidValue(
                f"the reader of {self.name} must give the names of its classes as a tuple of texts, got "
                f"{repr(named)[:60]}; tuple('0123456789') names the ten digits"
            )
        if self.facts is None:
            return source
        said = (self.facts.shape, self.facts.time_first)
        came = (source.train.shape, source.train.time_first)
        if said != came:
            raise InvalidValue(
                f"{self.name} is registered with samples of shape {said[0]}{_over_time(said[1])}, but its reader gave "
                f"{came[0]}{_over_time(came[1])}; correct its facts or its reader"
            )
        if len(source.classes) > self.facts.classes:  # fewer are those of a folder that holds a part of the dataset
            raise InvalidValue(
                f"{self.name} is registered with {self.facts.classes} classes, but its reader named "
                f"{len(source.classes)}; correct its facts or its reader"
            )
        return source


def _over_time(time_first: bool) -> str:
    return ", over time" if time_first else ""


_DATASETS: dict[str, KnownDataset] = {}


def register(
    name: str,
    *,
    facts: Facts | None,
    cite: str,
    license: str,
    home: str = "",
    torchvision: str | None = None,
    checksums: Mapping[str, str] | None = None,
    needs_files: bool = True,
) -> Callable[[Reader], Reader]:
    """Registers a reader as a dataset; the arguments are those of `KnownDataset`.

    Raises: InvalidValue if something is missing, or another reader has the name.
    """

    def add(read: Reader) -> Reader:
        known = KnownDataset(name, read, facts, cite, license, home, torchvision, checksums or {}, needs_files)
        other = _DATASETS.get(name, known).read
        files = [inspect.getfile(reader) for reader in (other, read)]
        if files[0] != files[1] or other.__qualname__ != read.__qualname__:
            raise InvalidValue(f"two datasets are named {name!r}, in {files[0]} and in {files[1]}; rename one of them")
        _DATASETS[name] = known
        return read

    return add


@functools.cache
def _load_all() -> None:
    import_siblings("spikeprune.data")
    import_folders("SPIKEPRUNE_DATASETS", "dataset")
    for entry in importlib.metadata.entry_points(group="spikeprune.datasets"):
        entry.load()  # the module registers its readers


def names() -> list[str]:
    """The registered datasets, sorted.

    Examples:
        >>> len(sp.datasets()) >= 9
        True
    """
    _load_all()
    return sorted(_DATASETS)


def known_dataset(name: str) -> KnownDataset:
    """The registration of a dataset. Raises: UnknownName with the nearest name."""
    _load_all()
    if name not in _DATASETS:
        hint = "`spikeprune list datasets` lists all; your own: package.module:loaders"
        raise unknown("dataset", name, _DATASETS, f"({hint})")
    return _DATASETS[name]


def facts_of(name: str) -> Facts | None:
    """Sizes of a dataset that are known without its files; None for the user's own data and for image folders."""
    return None if ":" in name else known_dataset(name).facts


def told_apart_by_root(name: str) -> bool:
    """Whether only the folder says which data this is, as of `image-folder`."""
    return ":" not in name and known_dataset(name).facts is None and known_dataset(name).needs_files


def other_owner(known: KnownDataset, md5: str) -> str | None:
    """Another dataset, which has published a file of this md5 sum; None if there is none, or `known` has it too."""
    if md5 in known.checksums.values():
        return None
    _load_all()
    return next((other.name for other in _DATASETS.values() if md5 in other.checksums.values()), None)
