"""`load` turns the name of a dataset into a `Dataset`."""

import os
from pathlib import Path

from spikeprune.core.errors import InvalidValue, UserError
from spikeprune.data.dataset import Dataset, Source, assemble
from spikeprune.data.download import download as fetch
from spikeprune.data.formats.files import MissingFile, short
from spikeprune.data.registry import KnownDataset, Request, known_dataset
from spikeprune.data.user import read_user


def load(
    name: str,
    root: str | Path | None = None,
    *,
    T: int = 5,
    limit: int | None = None,
    seed: int = 0,
    validation: float = 0.1,
    download: bool = False,
    test_limit: int | None = None,
) -> Dataset:
    """Read, check and split a dataset.

    Args:
        name: one of `names()`, or the user's `package.module:loaders` (see `read_user`).
        root: the folder that holds the dataset's files or folder; without it the environment's SPIKEPRUNE_DATA.
        T: number of frames into which the events of a recording are binned. Images stay single: the model repeats them.
        limit: training samples to take, the held-out ones included; None for all.
        seed: of the draw of `limit` samples and of the validation split, both stratified by class.
        validation: share of the training samples held out, in [0, 1).
        download: let torchvision fetch what is missing.
        test_limit: test samples to take, stratified by class, the same for all seeds; None for all.
    Raises: UnknownName for an unknown dataset; MissingFile (a UserError) for a file that is not there; InvalidValue
        for a damaged file or a value out of its range; MissingDependency if a package that reads the data is missing.
    """
    if T < 1:
        raise InvalidValue(f"T must be at least 1 time step, got {T}; the paper's networks use 5")
    if ":" in name:
        source = read_user(name, root=_root(root), T=T, seed=seed)
    else:
        source = _read(known_dataset(name), root, T, download)
    return assemble(name, source, limit=limit, seed=seed, validation=validation, test_limit=test_limit)


def _read(known: KnownDataset, root: str | Path | None, T: int, download: bool) -> Source:
    if not known.needs_files:
        return known.check(known.read(Request(known, Path(), T)))
    request = Request(known, _existing(known.name, _root(root), create=download), T)
    try:
        return known.check(known.read(request))
    except MissingFile as absent:
        if not download:
            raise
        fetch(known, request.root, absent)
    return known.check(known.read(request))


def _root(root: str | Path | None) -> Path | None:
    given = root or os.environ.get("SPIKEPRUNE_DATA")
    return Path(given).expanduser() if given else None


def _existing(name: str, root: Path | None, *, create: bool) -> Path:
    if root is None:
        raise UserError(
            f"{name} is read from files: pass --data.root DIR, or set SPIKEPRUNE_DATA to the folder that holds them "
            "(--data.download true fetches what torchvision can)"
        )
    if not root.is_dir():
        if not create or root.exists():
            raise UserError(f"data root {short(root)} is not a folder; pass the folder that holds {name}")
        root.mkdir(parents=True)
    return root
