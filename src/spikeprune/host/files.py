"""Which paths may be read as a file: one that somebody sent may be a pipe or a device, and to read it may never end."""

import errno
import os
from pathlib import Path


def ordinary(path: str | os.PathLike[str]) -> Path:
    """The path, if it is a file, a folder, or nothing at all; the caller's own reading tells the last two.

    Raises: OSError for a pipe, a device or a socket.
    """
    path = Path(path)
    if path.exists() and not path.is_file() and not path.is_dir():
        raise OSError(errno.EINVAL, "it is no ordinary file", str(path))
    return path
