"""What the inference benchmarks share: networks that fire as if trained, masks, the machine, result files."""

import gc
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import spikeprune as sp
from spikeprune.model.adapter import adapter_for
from spikeprune.runtime import native
from spikeprune.runtime.bench import FLAGS

SIZES = {"digits-conv": 8, "digits-conv-wide": 8, "mlp": 8, "fashion-conv": 28, "fashion-conv-fc": 28}
SIZES["fashion-conv-large"] = 28
PACKAGES = ("spikeprune", "torch", "spikingjelly", "snntorch", "norse", "onnxruntime", "openvino")


def one_thread() -> None:
    """Every engine on one thread: only then does CPU time stand for latency."""
    torch.set_num_threads(1)


def machine() -> dict[str, Any]:
    """What belongs above a table of times."""
    versions: dict[str, str] = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    flags = [flag for flag in FLAGS if flag in native.cpu_features()]
    return {
        "cpu": native.cpu_name(), "flags": flags, "kernels": native.isa(), "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1), "versions": versions,
    }  # fmt: skip


def stored(path: Path) -> dict[str, Any]:
    """What an earlier, perhaps interrupted run left."""
    return json.loads(path.read_text()) if path.is_file() else {}


def keep(path: Path, result: dict[str, Any]) -> None:
    """Writes the results so far, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(result, indent=1) + "\n")
    beside.replace(path)


def measured(
    out: Path, wanted: Iterable[tuple[str, Callable[[], dict[str, Any]]]]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each wanted row by name: that of the file if it is there, else measured now and stored at once."""
    found = stored(out)
    rows = found.setdefault("rows", {})
    for name, measure in wanted:
        if name not in rows:
            rows[name] = measure()
            found["machine"] = machine()
            keep(out, found)
            gc.collect()
        yield name, rows[name]


def lively(model: nn.Module, x: Tensor) -> None:
    """Sets BatchNorm from a batch of images and shifts it down, so that about a tenth of the neurons fire."""
    adapter = adapter_for(model)
    model.train()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    threshold = 0.6 if any(n.v_threshold == 0.5 for n in adapter.neurons(model).values()) else 0.2
    for norm in norms:
        norm.momentum = 1.0
        nn.init.constant_(norm.bias, -threshold)
    with torch.no_grad():
        model(x)
    adapter.reset(model)
    model.eval()


def assert_alive(model: nn.Module, x: Tensor) -> None:
    """Raises: RuntimeError naming a neuron layer that never fires on x."""
    adapter = adapter_for(model)
    fired: dict[str, float] = {}

    def watch(name: str) -> Callable[..., None]:
        return lambda _, __, spikes: fired.__setitem__(name, float(spikes.mean()))

    hooks = [neuron.register_forward_hook(watch(name)) for name, neuron in adapter.neurons(model).items()]
    with torch.no_grad():
        model(x)
    adapter.reset(model)
    for hook in hooks:
        hook.remove()
    silent = [name for name, rate in fired.items() if rate < 1e-3]
    if silent:
        raise RuntimeError(f"{len(silent)} of {len(fired)} neuron layers are silent, {silent[0]!r} first; not timed")


def network(name: str, prune: Callable[[nn.Module], Any]) -> tuple[nn.Module, Tensor]:
    """A pruned zoo network at T=5 in eval mode, and images for it."""
    torch.manual_seed(0)
    size = SIZES.get(name, 32)
    model = sp.model(name, classes=10, T=5, size=size)
    x = torch.rand(8, 1 if name in SIZES else 3, size, size)
    prune(model)
    lively(model, x)
    return model, x


def uniform(sparsity: float) -> Callable[[nn.Module], None]:
    """Cuts the smallest weights of every layer."""

    def prune(model: nn.Module) -> None:
        for parameter in model.parameters():
            if parameter.dim() > 1 and sparsity > 0:
                size = parameter.abs().flatten()
                cut = size.kthvalue(max(1, math.floor(sparsity * size.numel()))).values
                parameter.data *= parameter.abs() > cut

    return prune


def ranked(sparsity: float, budget: str) -> Callable[[nn.Module], Any]:
    """The library's own one-shot magnitude pruning, ranked over all layers."""
    return lambda model: sp.prune(model, "magnitude", sparsity=sparsity, data=[torch.rand(2, 3, 32, 32)], budget=budget)
