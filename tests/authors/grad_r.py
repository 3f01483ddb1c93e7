"""Gradient rewiring against its authors' code, in float64: which connections exist, at six looks.

    python tests/authors/grad_r.py CHECKOUT [--write]

CHECKOUT is a clone of github.com/Yanqi-Chen/Gradient-Rewiring (made at commit 08bfad8). Their optimizer `GradRewiring`
runs as it is beside `GradR` with torch's Adam. Their prior moves by Adam's rate, corrected for bias, ours by the plain
one; beta_1 = 0 makes the two equal.
"""

import sys
from pathlib import Path
from typing import Any

import torch

import spikeprune as sp
from spikeprune.methods.grad_r import GradR

sys.path.insert(0, str(Path(__file__).parents[1]))
from authors import toy
from authors.exact import NUMBERS, compared

FILE = NUMBERS / "grad_r.json"
SETTING: dict[str, Any] = {
    "repository": "github.com/Yanqi-Chen/Gradient-Rewiring",
    "commit": "08bfad8",
    "network": "toy, 626 weights",
    "steps": 36,
    "looks": 6,
    "sparsity": 0.9,
    "alpha": 0.5,
    "lr": 0.01,
    "betas": [0.0, 0.999],
    "dtype": "float64",
    "made": "python tests/authors/grad_r.py CHECKOUT --write",
}
_EVERY = SETTING["steps"] // SETTING["looks"]


def ours() -> dict[str, Any]:
    """What this library does before its last mask update, which theirs does not have."""
    model, end = toy.net(), SETTING["steps"] + 1
    pruner = sp.Pruner(model, GradR(SETTING["alpha"]), sp.Constant(SETTING["sparsity"], begin=0, end=end, every=end))
    optimizer = torch.optim.Adam(model.parameters(), SETTING["lr"], betas=tuple(SETTING["betas"]))
    pruner.attach(optimizer)
    return {"updates": _looks(model, optimizer)}


def theirs(checkout: Path) -> dict[str, Any]:
    """What the authors' code does; biases are trained by torch's Adam, as there is nothing to rewire."""
    sys.path.insert(0, str(checkout))
    from gradrewire import GradRewiring

    model = toy.net()
    betas = tuple(SETTING["betas"])
    pruned = [p for p in model.parameters() if p.dim() > 1]
    rest = torch.optim.Adam([p for p in model.parameters() if p.dim() == 1], SETTING["lr"], betas=betas)
    rewiring = GradRewiring(pruned, SETTING["lr"], betas, alpha=SETTING["alpha"], s=SETTING["sparsity"])

    class Both:
        """Steps them together."""

        def zero_grad(self) -> None:
            model.zero_grad()

        def step(self) -> None:
            rewiring.step()
            rest.step()

    return {"updates": _looks(model, Both())}


def _looks(model: torch.nn.Module, optimizer: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []

    def after(step: int) -> None:
        if step % _EVERY == 0:
            values = toy.weights(model)
            found.append(toy.entry({n: w != 0 for n, w in values.items()}, values))

    toy.train(model, optimizer, SETTING["steps"], after)
    return found


if __name__ == "__main__":
    raise SystemExit(compared(__doc__, FILE, SETTING, theirs, ours))
