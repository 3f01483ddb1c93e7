"""ADMM's projection and dual updates against its authors' code, in float64, layer by layer at half the weights.

    python tests/authors/admm.py CHECKOUT [--write]

CHECKOUT is a clone of github.com/yjwu17/ADMM-Compression-for-SNNs (made at commit 350bf94). Their `projection` runs as
it is, in the loop of their main_sparse_snn.py, with the paper's squared distance as the pull. Their code adds the norm
itself and projects the starting weights in place; both are left out here (see the docstring of `Admm`).
"""

import sys
from pathlib import Path
from typing import Any

import torch

import spikeprune as sp
from spikeprune.methods.admm import Admm

sys.path.insert(0, str(Path(__file__).parents[1]))
from authors import toy
from authors.exact import NUMBERS, compared

FILE = NUMBERS / "admm.json"
SETTING: dict[str, Any] = {
    "repository": "github.com/yjwu17/ADMM-Compression-for-SNNs",
    "commit": "350bf94",
    "network": "toy, 626 weights",
    "updates": 5,
    "every": 4,
    "percent": 50,
    "rho": 0.5,
    "lr": 0.1,
    "dtype": "float64",
    "made": "python tests/authors/admm.py CHECKOUT --write",
}


def ours() -> dict[str, Any]:
    """Where Z is not 0 after each mask update, and at the last one what is alive."""
    model = toy.net()
    end = SETTING["updates"] * SETTING["every"]
    schedule = sp.Constant(SETTING["percent"] / 100, begin=0, end=end, every=SETTING["every"])
    pruner = sp.Pruner(model, Admm(rho=SETTING["rho"]), schedule, allocate="uniform", floor=0)
    optimizer = torch.optim.SGD(model.parameters(), SETTING["lr"])
    pruner.attach(optimizer)
    found: list[dict[str, Any]] = []

    def after(step: int) -> None:
        if step % SETTING["every"] == 0:
            z = pruner._updater.memory.get("z")  # dropped after the last mask update
            values = toy.weights(model)
            found.append(toy.entry(dict(pruner.masks) if z is None else {n: v != 0 for n, v in z.items()}, values))

    toy.train(model, optimizer, end, after)
    return {"updates": found}


def theirs(checkout: Path) -> dict[str, Any]:
    """Their projection in their order: Z = project(W + U), U = U + W - Z; in the end W is projected itself."""
    sys.path.insert(0, str(checkout))
    from torch_prune_utility import projection, prune_weight

    model = toy.net()
    values = dict(toy.weights(model))
    z = {n: projection(w.clone(), percent=SETTING["percent"]) for n, w in values.items()}
    u = {n: torch.zeros_like(w) for n, w in values.items()}
    found: list[dict[str, Any]] = []
    named = dict(model.named_parameters())

    def penalty() -> torch.Tensor:
        return sum(0.5 * SETTING["rho"] * (named[n] - z[n] + u[n]).square().sum() for n in z)

    def after(step: int) -> None:
        if step % SETTING["every"]:
            return
        if step == SETTING["updates"] * SETTING["every"]:
            kept = {}
            for name in z:
                pruned, kept[name] = prune_weight(named[name].detach().clone(), SETTING["percent"])
                named[name].data.copy_(pruned)
            found.append(toy.entry(kept, toy.weights(model)))
            return
        for name in z:
            weight = named[name].detach()
            z[name] = projection(weight + u[name], percent=SETTING["percent"])
            u[name] = u[name] + weight - z[name]
        found.append(toy.entry({n: v != 0 for n, v in z.items()}, toy.weights(model)))

    toy.train(
        model, torch.optim.SGD(model.parameters(), SETTING["lr"]), SETTING["updates"] * SETTING["every"], after, penalty
    )
    return {"updates": found}


if __name__ == "__main__":
    raise SystemExit(compared(__doc__, FILE, SETTING, theirs, ours))
