"""The device and the precision of a run, and the settings that make it repeatable."""

import contextlib
import logging
import os
import platform
import random
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol, cast

import numpy as np
import torch

from spikeprune.core.errors import InvalidValue
from spikeprune.host.machine import cpu_features, cpu_name, version
from spikeprune.record.checkpoint import RandomState
from spikeprune.record.run import Environment


class _Filling(Protocol):
    """The type of `torch.utils.deterministic`, whose stubs lack this setting."""

    fill_uninitialized_memory: bool


_log = logging.getLogger("spikeprune")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one, else the CPU.

    Raises: InvalidValue for a device that is unknown or absent.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        if why := unusable_gpu():
            _log.warning("spikeprune: %s; this runs on the CPU (--device cpu says nothing)", why)
        return torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InvalidValue(f"device {name!r} is not usable here; `spikeprune doctor` shows which are") from error
    return device


_GPUS = ("/proc/driver/nvidia/gpus", "/sys/class/kfd/kfd/topology/nodes")  # drivers of NVIDIA and AMD


def unusable_gpu(folders: Sequence[str] = _GPUS) -> str:
    """Why torch cannot use a GPU whose driver is here; empty where there is none or torch can use it."""
    found = [folder for folder in folders if Path(folder).is_dir() and any(Path(folder).iterdir())]
    if not found or torch.cuda.is_available():
        return ""
    if torch.version.cuda is None and torch.version.hip is None:
        return f"this machine has a GPU, but torch {torch.__version__} is built for the CPU only; install a CUDA build"
    return (
        f"this machine has a GPU that torch {torch.__version__} cannot use; its driver may be too old for CUDA "
        f"{torch.version.cuda}, or CUDA_VISIBLE_DEVICES hides it"
    )


def choose_precision(name: str, device: torch.device) -> str:
    """`auto` is bf16 where the device computes it natively (CUDA, or a CPU with avx512_bf16 or AMX), else fp32."""
    if name != "auto":
        return name
    native = (
        torch.cuda.is_bf16_supported() if device.type == "cuda" else bool({"avx512_bf16", "amx_bf16"} & cpu_features())
    )
    return "bf16" if native else "fp32"


def environment(device: torch.device, precision: str) -> Environment:
    """The environment of a run, for readers who judge or repeat a number: versions, device, threads, git revision."""
    packages = ("spikeprune", "torch", "numpy", "safetensors", "spikingjelly", "snntorch", "norse")
    return Environment(
        versions={"python": platform.python_version(), **{name: version(name) for name in packages}},
        platform=platform.platform(),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        device_type=device.type,
        threads=torch.get_num_threads(),
        precision=precision,
        git=git_revision(),
    )


def git_revision() -> str | None:
    """The commit of the package's own checkout, with `+` if it has changes; None if it is installed otherwise."""
    here = Path(__file__).resolve()
    root = next((parent for parent in here.parents if (parent / ".git").exists()), None)
    if root is None or not (root / "src" / "spikeprune").is_dir():
        return None
    command = ["git", "-C", str(root)]
    try:
        commit = subprocess.run([*command, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True)
        changed = subprocess.run([*command, "status", "--porcelain"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return commit.stdout.strip() + ("+" if changed.stdout.strip() else "")


@contextlib.contextmanager
def repeatable(threads: int | None = None) -> Iterator[None]:
    """Deterministic algorithms inside the `with`; the settings before are put back.

    Args:
        threads: sums depend on how many threads share them, so a continued run takes the number it began with.
    """
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark, threads_before = torch.backends.cudnn.benchmark, torch.get_num_threads()
    switch = cast("_Filling", torch.utils.deterministic)  # torch puts an object in the place of this module
    filled = switch.fill_uninitialized_memory
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Writing NaN into every new tensor costs several per cent of a step; nothing reads a tensor before it is written.
    switch.fill_uninitialized_memory = False
    torch.backends.cudnn.benchmark = False
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        switch.fill_uninitialized_memory = filled
        torch.backends.cudnn.benchmark = benchmark
        torch.set_num_threads(threads_before)


def random_states() -> RandomState:
    """The states of all random number generators, loadable weights-only."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    version, numbers, normal = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": (
            str(kind),
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            int(position),
            int(has_gauss),
            float(gauss),
        ),
        "python": (version, list(numbers), normal),
    }


def restore_random_states(states: RandomState) -> None:
    """Put back what `random_states` returned."""
    torch.set_rng_state(states["torch"])
    if states["cuda"] and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
    kind, keys, position, has_gauss, gauss = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    version, numbers, normal = states["python"]
    random.setstate((version, tuple(numbers), normal))


def seed_everything(seed: int) -> None:
    """Seeds every random generator that a model or a method may draw from."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
