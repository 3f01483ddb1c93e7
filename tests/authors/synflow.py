"""SynFlow against its authors' code, in float64: the masks of three sparsities, of a plain and of a spiking network.

    python tests/authors/synflow.py CHECKOUT [--write]

CHECKOUT is a clone of github.com/ganguli-lab/Synaptic-Flow (made at commit 9dfa57a). Their pruner and their loop of
cuts run as they are, on their layers. Where this library's network spikes, theirs has nn.Identity: their code knows no
neuron.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from spikingjelly.activation_based import neuron
from torch import Tensor, nn

import spikeprune as sp

sys.path.insert(0, str(Path(__file__).parents[1]))
from authors import toy
from authors.exact import NUMBERS, compared, uniform

FILE = NUMBERS / "synflow.json"
SETTING: dict[str, Any] = {
    "repository": "github.com/ganguli-lab/Synaptic-Flow",
    "commit": "9dfa57a",
    "network": "conv 3-6, conv 6-8 with BatchNorm, Linear 8-4; 626 weights",
    "between": ["relu", "spiking"],
    "keep": [313, 63, 32],
    "cuts": [5, 10, 30],
    "dtype": "float64",
    "made": "python tests/authors/synflow.py CHECKOUT --write",
}
_RUNS = [(b, k / 626, c) for b in SETTING["between"] for k, c in zip(SETTING["keep"], SETTING["cuts"], strict=True)]


def net(between: Callable[[], nn.Module], conv: Any = nn.Conv2d, norm: Any = nn.BatchNorm2d, linear: Any = nn.Linear):
    """Untrained but for its running statistics, which are not those of a fresh BatchNorm."""
    layers: list[Any] = [conv(3, 6, 3, padding=1), norm(6), between(), conv(6, 8, 3, padding=1, bias=False), norm(8)]
    model = nn.Sequential(*layers, between(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear(8, 4)).double().eval()
    masks = {n for n, _ in model.named_buffers() if n.endswith("_mask")}
    values = [*model.named_parameters(), *((n, b) for n, b in model.named_buffers() if n not in masks)]
    with torch.no_grad():
        for order, (_, value) in enumerate(v for v in values if v[1].is_floating_point()):
            value.copy_(uniform(tuple(value.shape), 40 + order) * 0.4)
        for module in (model[1], model[4]):
            module.running_var.abs_().add_(0.5)
            module.running_mean.mul_(0.05)
    return model


def ours() -> dict[str, Any]:
    """One pruning in many cuts at each sparsity."""
    found: list[dict[str, Any]] = []
    between: dict[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "spiking": neuron.IFNode}
    for kind, density, cuts in _RUNS:
        model = net(between[kind])
        masks = sp.prune(model, sp.Synflow(cuts), 1 - density, data=[toy.batch(1)[0][:2]], floor=0)
        found.append(toy.entry(dict(masks), {}))
    return {"updates": found}


def theirs(checkout: Path) -> dict[str, Any]:
    """Their masks."""
    sys.path.insert(0, str(checkout))
    sys.modules["tqdm"] = SimpleNamespace(tqdm=lambda it: it)
    from Layers import layers
    from prune import prune_loop
    from Pruners.pruners import SynFlow
    from Utils import generator

    torch.set_default_dtype(torch.float64)  # of their input of ones
    found: list[dict[str, Any]] = []
    for kind, density, cuts in _RUNS:
        between = nn.ReLU if kind == "relu" else nn.Identity
        model = net(between, layers.Conv2d, layers.BatchNorm2d, layers.Linear)
        pruner = SynFlow(generator.masked_parameters(model))
        prune_loop(model, None, pruner, [toy.batch(1)], torch.device("cpu"), density, "exponential", "global", cuts)
        names = {id(p): n for n, p in model.named_parameters()}
        masks: dict[str, Tensor] = {names[id(p)]: mask for mask, p in pruner.masked_parameters}
        found.append(toy.entry(masks, {}))
    torch.set_default_dtype(torch.float32)
    return {"updates": found}


if __name__ == "__main__":
    raise SystemExit(compared(__doc__, FILE, SETTING, theirs, ours))
