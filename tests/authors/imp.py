"""Iterative magnitude pruning with rewinding against the authors' code for SNNs, in float64, over four rounds.

    python tests/authors/imp.py CHECKOUT [--write]

CHECKOUT is a clone of github.com/Intelligent-Computing-Lab-Yale/Exploring-Lottery-Ticket-Hypothesis-in-SNNs (made at
commit 05602e8). Their `prune_by_percentile` (scope "global") and `original_initialization` run as they are, with a new
optimizer after each, as in their script; gradients of weights below 1e-6 are zeroed there, and so here. Each round
cuts a quarter of what is alive, rounded down as theirs does; `Imp` spreads the rounds over its target instead.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

import spikeprune as sp
from spikeprune.core.schedule import Schedule
from spikeprune.methods.imp import Imp

sys.path.insert(0, str(Path(__file__).parents[1]))
from authors import toy
from authors.exact import NUMBERS, compared, run_on_the_cpu

FILE = NUMBERS / "imp.json"
SETTING: dict[str, Any] = {
    "repository": "github.com/Intelligent-Computing-Lab-Yale/Exploring-Lottery-Ticket-Hypothesis-in-SNNs",
    "commit": "05602e8",
    "network": "toy, 626 weights",
    "percent": 25,
    "rounds": 4,
    "steps a round": 6,
    "lr": 0.3,
    "momentum": 0.9,
    "dtype": "float64",
    "made": "python tests/authors/imp.py CHECKOUT --write",
}


@dataclass(frozen=True)
class TheirCounts(Schedule):
    """A quarter of the alive weights in each round, rounded down."""

    to: float = 0.9
    total: int = 626

    def at(self, progress: float) -> float:
        return self.value(round(progress * SETTING["rounds"]), SETTING["rounds"])

    def value(self, number: int, count: int) -> float:
        alive = self.total
        for _ in range(number):
            alive -= int(alive / (100 / SETTING["percent"]))
        return 1 - alive / self.total


def ours() -> dict[str, Any]:
    """What this library does, with their counts."""
    model, every = toy.net(), SETTING["steps a round"]
    end = SETTING["rounds"] * every
    pruner = sp.Pruner(model, Imp(), TheirCounts(begin=0, end=end, every=every), floor=0)
    optimizer = torch.optim.SGD(model.parameters(), SETTING["lr"], SETTING["momentum"])
    pruner.attach(optimizer)
    found: list[dict[str, Any]] = []

    def after(step: int) -> None:
        if step % every == 0:
            found.append(toy.entry(dict(pruner.masks), toy.weights(model)))

    toy.train(model, optimizer, end, after)
    return {"updates": found}


def theirs(checkout: Path) -> dict[str, Any]:
    """What the authors' code does."""
    run_on_the_cpu(checkout)
    sys.modules["spikingjelly.clock_driven.functional"] = SimpleNamespace(reset_net=None)  # type: ignore[assignment]
    from utils_for_snn_lth import make_mask, original_initialization, prune_by_percentile

    model = toy.net()
    names = [n for n, _ in model.named_parameters() if "weight" in n]
    initial = {n: v.clone() for n, v in model.state_dict().items()}
    mask = make_mask(model)
    scope = SimpleNamespace(pruning_scope="global")
    found: list[dict[str, Any]] = []
    acting = SimpleNamespace()

    def renew() -> None:
        optimizer = torch.optim.SGD(model.parameters(), SETTING["lr"], SETTING["momentum"])

        def step() -> None:
            for name, parameter in model.named_parameters():
                if "weight" in name:
                    parameter.grad[parameter.detach().abs() < 1e-6] = 0
            optimizer.step()

        acting.zero_grad, acting.step = model.zero_grad, step

    def after(step: int) -> None:
        nonlocal mask
        if step % SETTING["steps a round"] == 0:
            _, mask = prune_by_percentile(scope, SETTING["percent"], mask, model)
            original_initialization(mask, initial, model)
            renew()
            kept = dict(zip(names, map(torch.as_tensor, mask), strict=True))
            found.append(toy.entry(kept, toy.weights(model)))

    renew()
    loop = SimpleNamespace(zero_grad=lambda: acting.zero_grad(), step=lambda: acting.step())
    toy.train(model, loop, SETTING["rounds"] * SETTING["steps a round"], after)
    return {"updates": found}


if __name__ == "__main__":
    raise SystemExit(compared(__doc__, FILE, SETTING, theirs, ours))
