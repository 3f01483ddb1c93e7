"""Refuses paths that are no ordinary files: reading a pipe or a device that somebody sent may never end."""

import errno
import os
from pathlib import Path


def ordinary(path: str | os.PathLike[str]) -> Path:
    """The path of a file. A folder, or a path where nothing is, is returned too: reading it raises the usual OSError.

    Raises: OSError for a pipe, a device or a socket.
    """
    path = Path(path)
    if path.exists() and not path.is_file() and not path.is_dir():
        raise OSError(errno.EINVAL, "it is no ordinary file", str(path))
    return path
