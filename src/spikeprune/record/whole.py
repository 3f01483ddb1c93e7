"""Writing a file whole or not at all: a kill or a power cut at any moment leaves what was there before, or the new."""

import os
from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file so that it is seen with all of `content` or as it was before.

    The content is on the disk before the name points to it, and the name is on the disk when this returns.
    """
    beside = path.with_name(f".{path.name}.part")
    with beside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows opens no folders; there a rename is on the disk when the system says so
        return
    try:
        os.fsync(handle)
    except OSError:  # a network file system that knows no such call
        pass
    finally:
        os.close(handle)
