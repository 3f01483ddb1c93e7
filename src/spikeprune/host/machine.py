"""This machine: the processor, its instruction sets, and the versions of installed packages."""

import functools
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path


def cpu_name() -> str:
    """The processor as the operating system names it."""
    for line in _cpuinfo():
        if line.lower().startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@functools.cache  # asked at every kernel call
def cpu_features() -> frozenset[str]:
    """Lower-case instruction set flags of this machine's processor; empty where they cannot be read."""
    for line in _cpuinfo():
        key, _, value = line.partition(":")
        if key.strip().lower() in ("flags", "features"):
            return frozenset(value.lower().split())
    if platform.machine().lower() in ("arm64", "aarch64"):
        return frozenset({"asimd"})
    if sys.platform == "darwin":
        brand = subprocess.run(
            ["sysctl", "-n", "machdep.cpu.features", "machdep.cpu.leaf7_features"], capture_output=True
        )
        return frozenset(brand.stdout.decode(errors="replace").lower().split())
    return frozenset()


def version(package: str) -> str | None:
    """The installed version of a package, None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
