"""Early-Bird against the authors' code for SNNs, in float64: the mask at each look, and the look that ends the search.

    python tests/authors/early_bird.py CHECKOUT [--write]

CHECKOUT is a clone of github.com/Intelligent-Computing-Lab-Yale/Exploring-Lottery-Ticket-Hypothesis-in-SNNs (made at
commit 05602e8). Their `get_pruning_maks` runs as it is; the loop around it, which their script holds in its `main`,
looks before each epoch and compares the last five masks, as written there.
"""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

import spikeprune as sp
from spikeprune.methods.early_bird import EarlyBird

sys.path.insert(0, str(Path(__file__).parents[1]))
from authors import toy
from authors.exact import NUMBERS, compared, run_on_the_cpu

FILE = NUMBERS / "early_bird.json"
SETTING: dict[str, Any] = {
    "repository": "github.com/Intelligent-Computing-Lab-Yale/Exploring-Lottery-Ticket-Hypothesis-in-SNNs",
    "commit": "05602e8",
    "network": "toy, 626 weights",
    "percent": 50,
    "steps an epoch": 3,
    "epochs": 30,
    "distance": 0.004,
    "lr": 0.2,
    "dtype": "float64",
    "made": "python tests/authors/early_bird.py CHECKOUT --write",
}


def ours() -> dict[str, Any]:
    """The mask at every look, the number of the look that drew the ticket (0: the initial weights), and the ticket."""
    model = toy.net()
    every, epochs = SETTING["steps an epoch"], SETTING["epochs"]
    schedule = sp.Constant(SETTING["percent"] / 100, begin=0, end=every * epochs, every=every)
    pruner = sp.Pruner(model, EarlyBird(distance=SETTING["distance"]), schedule, floor=0)
    optimizer = torch.optim.SGD(model.parameters(), SETTING["lr"])
    pruner.attach(optimizer)
    found: list[dict[str, Any]] = []

    def after(step: int) -> None:
        if step % every == 0 and not any(r.cut for r in pruner.rounds[:-1]):
            memory = pruner._updater.memory
            drawn = pruner.rounds[-1].cut
            if step == every and not drawn:
                found.append(_look(dict(memory["mask 0"])))
            latest = dict(pruner.masks) if drawn else memory[sorted(memory)[-1]]
            found.append(_look(latest))

    toy.train(model, optimizer, every * epochs, after)
    return {"updates": found, "drawn at look": len(found) - 1}


def theirs(checkout: Path) -> dict[str, Any]:
    """Their masks, one before each epoch."""
    run_on_the_cpu(checkout)
    stub = SimpleNamespace(reset_net=None)
    sys.modules["spikingjelly.clock_driven.functional"] = stub  # type: ignore[assignment]
    from utils_for_snn_lth import get_pruning_maks, make_mask

    model = toy.net()
    names = [n for n, _ in model.named_parameters() if "weight" in n]
    optimizer = torch.optim.SGD(model.parameters(), SETTING["lr"])
    kept: list[list[torch.Tensor]] = []
    found: list[dict[str, Any]] = []
    ended = False

    def look() -> None:
        nonlocal ended
        mask = get_pruning_maks(SimpleNamespace(), SETTING["percent"], make_mask(model), model)
        kept.append([torch.as_tensor(m) for m in mask])
        found.append(_look(dict(zip(names, kept[-1], strict=True))))
        if len(kept) > 5:
            kept.pop(0)
        if len(kept) == 5:
            total = sum(m.numel() for m in kept[-1])
            distances = [
                1 - sum(int((a == b).sum()) for a, b in zip(kept[-1], other, strict=True)) / total
                for other in kept[:-1]
            ]
            ended = max(distances) < SETTING["distance"]

    look()

    def after(step: int) -> None:
        if step % SETTING["steps an epoch"] == 0 and not ended:
            look()

    toy.train(model, optimizer, SETTING["steps an epoch"] * SETTING["epochs"], after)
    return {"updates": found, "drawn at look": len(found) - 1}


def _look(mask: dict[str, torch.Tensor]) -> dict[str, Any]:
    return toy.entry(mask, {})


if __name__ == "__main__":
    raise SystemExit(compared(__doc__, FILE, SETTING, theirs, ours))
