"""Find or build the C++ kernels: one shared library per kernel name and instruction set, loaded with ctypes.

The kernels have a plain C interface and include no torch header, so one compiles in seconds. A library that was built
ahead lies beside the sources (`kernels/built/`, in wheels made after `python -m spikeprune.runtime.native`); otherwise
it is built at first use and kept in the user's cache folder under a key of sources, compiler and flags, with its
checksum in its name. A library there is loaded only if it is whole, belongs to the user, and nobody else may write it.
Without a compiler `library` returns None and callers use PyTorch.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

from spikeprune.core.errors import InvalidValue, RunFailed, unknown
from spikeprune.host.machine import cpu_features as cpu_features
from spikeprune.host.machine import cpu_name as cpu_name

log = logging.getLogger("spikeprune")
MOST_SECONDS = 600.0  # for the compiler, which may hang

KERNELS = Path(__file__).parent / "kernels"
BUILT = KERNELS / "built"

# -ffp-contract=off: a multiply and an add must round like the dense model's own two operations; kernels that want a
# fused multiply-add ask for one.
COMMON_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared", "-pthread", "-ffp-contract=off", "-fno-math-errno")
# What a library built for other machines must not need there.
AHEAD_FLAGS = ("-static-libstdc++", "-static-libgcc")
NAMES = ("engine", "fuse", "sparse_train")
# The engine's vectors are written out, so that -O3 only doubles the time it takes to compile.
KERNEL_FLAGS = {"engine": ("-O2",)}
ISA_FLAGS: dict[str, tuple[str, ...]] = {
    "avx512": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma", "-mprefer-vector-width=512"),
    "avx2": ("-mavx2", "-mfma"),
    "neon": (),  # part of every 64-bit Arm
    "portable": (),
}
NEEDED_FEATURES: dict[str, frozenset[str]] = {
    "avx512": frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx2", "fma"}),
    "avx2": frozenset({"avx2", "fma"}),
    "neon": frozenset({"asimd"}),
    "portable": frozenset(),
}

_lock = threading.Lock()
_loaded: dict[tuple[str, str], ctypes.CDLL | None] = {}


def isa() -> str:
    """The instruction set in use: the best that this machine has, or what SPIKEPRUNE_ISA names.

    Raises: LookupError for a name that is not one of avx512, avx2, neon, portable; ValueError for an instruction set
        that this machine lacks.
    """
    return _isa(os.environ.get("SPIKEPRUNE_ISA", ""), cpu_features())


@functools.cache
def _isa(wanted: str, have: frozenset[str]) -> str:
    forced = wanted.strip().lower()
    if forced:
        if forced not in ISA_FLAGS:
            raise unknown("instruction set (SPIKEPRUNE_ISA)", forced, ISA_FLAGS)
        missing = NEEDED_FEATURES[forced] - have
        if missing:
            raise InvalidValue(
                f"SPIKEPRUNE_ISA={forced} needs {', '.join(sorted(missing))}, which this processor lacks; "
                f"unset it or use one of: {', '.join(name for name in ISA_FLAGS if NEEDED_FEATURES[name] <= have)}"
            )
        return forced
    return next(name for name in ISA_FLAGS if NEEDED_FEATURES[name] <= have)


def compiler() -> str | None:
    """The C++ compiler used for kernels: $CXX (which may have options), g++ or clang++, whichever is found first."""
    for command in (os.environ.get("CXX"), "g++", "clang++"):
        name, *options = _words(command or "")
        if name and (path := shutil.which(name)):
            return shlex.join([path, *options])
    return None


def _words(command: str) -> list[str]:
    """The words of a command; one empty word if it is empty, or if its quotes do not match."""
    try:
        return shlex.split(command) or [""]
    except ValueError:
        return [""]


def own_flags() -> tuple[str, ...]:
    """Flags that SPIKEPRUNE_CXXFLAGS adds to those of every kernel, as `make sanitize` does."""
    return tuple(shlex.split(os.environ.get("SPIKEPRUNE_CXXFLAGS", "")))


def cache_folder() -> Path:
    """The folder of libraries that were built at first use (XDG cache folder)."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "spikeprune" / "kernels"


def sources(name: str) -> list[Path]:
    """The C++ files of a kernel, in a fixed order.

    Raises: LookupError if there are none.
    """
    found = sorted(KERNELS.glob(f"{name}*.cpp"))
    if not found:
        raise unknown("kernel", name, {path.stem for path in KERNELS.glob("*.cpp")})
    return found


def build(name: str, target: Path, isa_name: str, cxx: str, extra: tuple[str, ...] = ()) -> None:
    """Compile the kernel `name` for one instruction set into the shared library `target`, atomically.

    Raises: RuntimeError with the compiler's first lines if it fails.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    # Written beside the target and renamed: a process that is killed, or two at once, never leave half a library.
    handle, scratch = tempfile.mkstemp(prefix=target.stem, suffix=".tmp", dir=target.parent)
    os.close(handle)
    command = [
        *_words(cxx),
        *COMMON_FLAGS,
        *KERNEL_FLAGS.get(name, ()),
        *ISA_FLAGS[isa_name],
        *extra,
        *own_flags(),
        *map(str, sources(name)),
        "-o",
        scratch,
    ]
    try:
        result = _run(command)
        if result.returncode:
            said = result.stderr.decode(errors="replace").strip()[:600]
            raise RunFailed(f"compiling the {name} kernel for {isa_name} failed: {said}")
        os.chmod(scratch, 0o755)
        os.replace(scratch, target)
    finally:
        Path(scratch).unlink(missing_ok=True)


def _run(command: list[str]) -> subprocess.CompletedProcess[bytes]:
    """Runs a compiler; one that hangs is ended with all that it has started.

    Raises: RunFailed after `MOST_SECONDS`.
    """
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    try:
        out, err = process.communicate(timeout=MOST_SECONDS)
    except BaseException as error:
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.communicate()
        if isinstance(error, subprocess.TimeoutExpired):
            raise RunFailed(f"the compiler {command[0]} took more than {MOST_SECONDS:g} s and was stopped") from error
        raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def _sources_key(name: str, isa_name: str) -> str:
    digest = hashlib.sha256()
    for path in [*sources(name), *sorted(KERNELS.glob("*.h"))]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    digest.update(repr((COMMON_FLAGS, KERNEL_FLAGS.get(name), ISA_FLAGS[isa_name], platform.machine())).encode())
    digest.update("".join(f" {flag}" for flag in own_flags()).encode())
    return digest.hexdigest()[:20]


def _key(name: str, isa_name: str, cxx: str) -> str:
    version = _run([*_words(cxx), "--version"]).stdout
    return hashlib.sha256(version + _sources_key(name, isa_name).encode()).hexdigest()[:20]


def _built_ahead(name: str, isa_name: str) -> Path:
    """The path of a library that was built ahead. Its name has a key of the sources."""
    return BUILT / f"{name}-{isa_name}-{_sources_key(name, isa_name)}.so"


def build_ahead(names: Sequence[str] = NAMES) -> list[Path]:
    """Compile kernels for every instruction set of this kind of processor into `kernels/built/`, for a wheel.

    Raises: RunFailed without a compiler, or if it fails.
    """
    cxx = compiler()
    if cxx is None:
        raise RunFailed("no C++ compiler found (g++ or clang++) to build the kernels with; install one or set CXX")
    arm = platform.machine().lower() in ("arm64", "aarch64")
    built: list[Path] = []
    for name in names:
        for isa_name in ("neon", "portable") if arm else ("avx512", "avx2", "portable"):
            target = _built_ahead(name, isa_name)
            for old in BUILT.glob(f"{name}-{isa_name}-*.so"):
                old.unlink()
            build(name, target, isa_name, cxx, AHEAD_FLAGS)
            built.append(target)
    return built


def comes_with_kernels() -> bool:
    """Whether all kernels for this machine were built ahead, as in a wheel, so that no compiler is needed."""
    return all(_built_ahead(name, isa()).exists() for name in NAMES)


def _find_or_build(name: str, isa_name: str) -> Path | None:
    ready = _built_ahead(name, isa_name)
    if ready.exists():
        return ready
    cxx = compiler()
    if cxx is None:
        log.warning("no C++ compiler found (g++ or clang++): the %s kernels run as slower PyTorch code", name)
        return None
    try:
        stem = f"{name}-{isa_name}-{_key(name, isa_name, cxx)}"
        return _cached(stem) or _keep(name, stem, isa_name, cxx)
    except (RunFailed, OSError) as error:
        log.warning("the %s kernels run as slower PyTorch code: %s", name, error)
        return None


def _cached(stem: str) -> Path | None:
    """A library of that key in the cache that may be loaded. Others of the key are removed.

    Raises: RunFailed if somebody else may write into the cache folder.
    """
    folder = cache_folder()
    if folder.exists() and not _ours(folder):
        raise RunFailed(
            f"the folder {folder} is not yours alone to write; mend its owner and mode, or set XDG_CACHE_HOME"
        )
    for path in folder.glob(f"{stem}-*.so"):
        if _ours(path) and path.stem.rpartition("-")[2] == _digest(path):
            return path
        path.unlink()  # cut, changed, or written by somebody else
    return None


def _keep(name: str, stem: str, isa_name: str, cxx: str) -> Path:
    """Builds a library into the cache, under a name with its checksum."""
    cache_folder().mkdir(parents=True, exist_ok=True, mode=0o700)
    fresh = cache_folder() / f".{stem}-{os.getpid()}.so"
    try:
        build(name, fresh, isa_name, cxx)
        path = cache_folder() / f"{stem}-{_digest(fresh)}.so"
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)
    return path


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:32]


def _ours(path: Path) -> bool:
    """Whether a file or folder belongs to this user, and nobody outside of the user's groups may write it."""
    if not hasattr(os, "getuid"):  # Windows
        return True
    status = path.stat()
    return status.st_uid == os.getuid() and not status.st_mode & 0o002


def _load(name: str, path: Path | None) -> ctypes.CDLL | None:
    """The library if it is one for this machine and this version; else None, with a line in the log."""
    if path is None:
        return None
    from spikeprune.runtime import structs  # needs torch; `spikeprune doctor` asks for the compiler without it

    try:
        loaded = ctypes.CDLL(str(path))
        wrong = structs.mismatch(name, loaded)
        if not wrong:
            structs.declare(name, loaded)
    except OSError as error:  # a library for another machine, or damaged
        wrong = str(error)
    except (AttributeError, ValueError) as error:
        wrong = f"its interface is not that of this version ({error})"
    if wrong:
        log.warning("the %s kernels run as slower PyTorch code, %s cannot be used: %s", name, path.name, wrong)
        return None
    return loaded


def library(name: str) -> ctypes.CDLL | None:
    """The kernel library `name` for this machine, built if need be; None (said once in the log) without a compiler.

    Raises: LookupError for an unknown kernel or SPIKEPRUNE_ISA; ValueError for an instruction set the machine lacks.
    """
    isa_name = isa()
    if (name, isa_name) in _loaded:  # asked for many times in every training step
        return _loaded[name, isa_name]
    with _lock:
        if (name, isa_name) not in _loaded:
            _loaded[name, isa_name] = _load(name, _find_or_build(name, isa_name))
        return _loaded[name, isa_name]


if __name__ == "__main__":
    for library_path in build_ahead():
        print(library_path)
