"""Downloading by torchvision's own loaders, where the user asks for it and has torchvision."""

import contextlib
import http.client
import io
from pathlib import Path

from spikeprune.core.errors import MissingDependency, UserError
from spikeprune.data.formats.files import MissingFile, short
from spikeprune.data.registry import KnownDataset


def download(known: KnownDataset, root: Path, absent: MissingFile) -> None:
    """Let torchvision fetch and check the files of a dataset into `root`.

    Args:
        absent: the error of the reader, which names the file that is missing.
    Raises: MissingDependency without a working torchvision; UserError for a dataset that it does not fetch, and
        where the download fails.
    """
    if known.torchvision is None:
        raise UserError(f"{absent}; {known.name} has no downloader, put its files there yourself"[:300]) from absent
    try:
        from torchvision import datasets  # pyright: ignore[reportMissingImports]  # the user's, never ours
    except (ImportError, OSError, RuntimeError) as error:  # built for another torch it raises RuntimeError
        raise MissingDependency(
            f"downloading {known.name} needs torchvision, which does not import here ({type(error).__name__}); "
            f"install the one for your torch, or put the files into {short(root, 60)}"
        ) from error
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # stdout is ours: its last line is the run folder
            getattr(datasets, known.torchvision)(str(root), download=True)
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        lines = str(error).splitlines() or [""]
        raise UserError(f"download failed ({type(error).__name__}: {lines[0][:70]}); {absent}"[:300]) from error
