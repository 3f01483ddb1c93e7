"""Finding and opening data files: folders and archives are read alike, and a missing or damaged file is named."""

import gzip
import hashlib
import io
import os
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from spikeprune.core.errors import InvalidValue, UserError

GET_IT = "pass --data.root DIR or set SPIKEPRUNE_DATA, or --data.download true"


_GROWTH = 100  # times that a packed file may grow; images and spikes grow at most tenfold, a bomb a thousandfold
_SMALL = 64 << 20  # bytes that any packed file may unpack to


class MissingFile(UserError, FileNotFoundError):
    """A data file that is not where it was looked for."""


@contextmanager
def named(path: Path | str) -> Iterator[None]:
    """Whatever a decoder raises over bad bytes becomes an error that names the file.

    Decoders raise nearly anything over damaged input: zlib.error, EOFError, SyntaxError (PNG), MemoryError (a pickle
    that asks for more than there is).
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        lines = str(error).splitlines() or [""]
        raise damaged(path, f"{type(error).__name__}: {lines[0][:80]}") from error


def damaged(path: Path | str, why: str) -> InvalidValue:
    return InvalidValue(f"{short(path)} cannot be read, it may be damaged or cut ({why}); fetch it again")


def missing(dataset: str, file: str, root: Path, places: Sequence[Path] = (), get_it: str = GET_IT) -> MissingFile:
    """The error for a file that none of `places` (below `root`) holds."""
    inside = [os.path.relpath(place, root) for place in places if place != root]
    tried = f" (tried {', '.join(inside[:3])})" if inside else ""
    return MissingFile(f"{dataset}: no {file} in {short(root, 70)}{tried}; {get_it}")


def short(path: Path | str, length: int = 100) -> str:
    """The end of a long path, where the file's name stands."""
    text = str(path)
    return text if len(text) <= length else f"...{text[-length:]}"


def below(root: Path, names: Sequence[str]) -> list[Path]:
    """The folders where a dataset may lie: those of `names` that exist in `root`, then `root` itself."""
    return [root / name for name in names if (root / name).is_dir()] + [root]


def largest(packed: int) -> int:
    """Bytes that a file of `packed` bytes may unpack to."""
    return max(_SMALL, _GROWTH * packed)


def _check_growth(path: Path, total: int) -> None:
    packed = path.stat().st_size
    if total > largest(packed):
        raise damaged(path, f"{packed:,} bytes that unpack to more than {largest(packed):,}")


def ungzipped(path: Path, content: bytes, most: int) -> bytes:
    """The first `most` + 1 bytes that a .gz file unpacks to. A small file may hold gigabytes of zeros."""
    with named(path), gzip.open(io.BytesIO(content)) as file:
        return file.read(most + 1)


@dataclass(frozen=True)
class Tree:
    """A folder, or a .zip or .tar.* file, as a mapping from relative name to content."""

    path: Path
    files: dict[str, Callable[[], IO[bytes]]]

    @contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        """The named file; what goes wrong while it is read names it."""
        with named(self.path / name), self.files[name]() as file:
            yield file

    def read(self, name: str) -> bytes:
        with self.open(name) as file:
            return file.read()

    def from_folder(self, folder: str) -> "Tree":
        """The tree below the first folder of that name, at whatever depth; the tree itself if there is none."""
        for name in self.files:
            parts = PurePosixPath(name).parts
            if folder in parts[:-1]:
                prefix = "/".join(parts[: parts.index(folder) + 1]) + "/"
                inner = {key.removeprefix(prefix): value for key, value in self.files.items() if key.startswith(prefix)}
                return Tree(self.path, inner)
        return self


def open_tree(path: Path) -> Tree:
    """The files of a folder or archive, sorted by name, hidden ones left out. A tar file is read into memory.

    Nothing is unpacked to disk, so that names inside an archive can point nowhere.
    """
    with named(path):
        if path.is_dir():
            found = _walk(path)
        elif path.suffix == ".zip":
            archive = zipfile.ZipFile(path)
            _check_growth(path, sum(entry.file_size for entry in archive.infolist()))
            found = {entry.filename: partial(archive.open, entry) for entry in archive.infolist() if not entry.is_dir()}
        else:
            with tarfile.open(path) as tar:
                found = {name: partial(io.BytesIO, content) for name, content in _members(path, tar)}
    visible = {
        name.removeprefix("./"): opener
        for name, opener in sorted(found.items())
        if not any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(name).parts)
    }
    return Tree(path, visible)


def _walk(path: Path) -> dict[str, Callable[[], IO[bytes]]]:
    found: dict[str, Callable[[], IO[bytes]]] = {}
    for folder, _, names in os.walk(path, followlinks=True):
        for name in names:
            file = Path(folder, name)
            found[file.relative_to(path).as_posix()] = partial(file.open, "rb")
    return found


def _members(path: Path, tar: tarfile.TarFile) -> Iterator[tuple[str, bytes]]:
    """Name and content of every ordinary member. The file is read to its end, since its checksum stands there."""
    total = 0
    for member in tar:
        total += member.size
        _check_growth(path, total)
        if member.isfile():
            yield member.name, _content(tar, member)
    while tar.fileobj and (rest := tar.fileobj.read(1 << 20)):
        total += len(rest)
        _check_growth(path, total)


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None  # only regular files are asked for
    return file.read()


def all_published(found: Iterable[bool | None]) -> bool | None:
    """Whether all files have their published md5 sum; None if that is not known of some and the others have theirs."""
    seen = set(found)
    return False if False in seen else None if None in seen else True


def md5(content: bytes) -> str:
    """The md5 sum in hexadecimal digits.

    It is compared with published sums and gives no protection against forged files.
    """
    return hashlib.md5(content, usedforsecurity=False).hexdigest()
