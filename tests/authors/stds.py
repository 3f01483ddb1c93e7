"""STDS against its authors' code, in float64: which weights are 0 as the threshold grows, weight decay included.

    python tests/authors/stds.py CHECKOUT [--write]

CHECKOUT is a clone of github.com/Yanqi-Chen/STDS (made at commit 381f8fc). Their `PConv` with the function "stmod" and
their `sineInc` run as they are, in a small network whose convolutions are pruned and whose classifier is not.
"""

import math
import sys
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

import spikeprune as sp
from spikeprune.methods.stds import Stds

sys.path.insert(0, str(Path(__file__).parents[1]))
from authors import toy
from authors.exact import NUMBERS, compared, run_on_the_cpu

FILE = NUMBERS / "stds.json"
SETTING: dict[str, Any] = {
    "repository": "github.com/Yanqi-Chen/STDS",
    "commit": "381f8fc",
    "network": "toy, 594 weights in convolutions",
    "steps": 40,
    "looks": 6,
    "depth": 0.08,
    "ramp": "sine",
    "lr": 0.1,
    "momentum": 0.9,
    "weight_decay": 0.02,
    "dtype": "float64",
    "made": "python tests/authors/stds.py CHECKOUT --write",
}
_EVERY = SETTING["steps"] // (SETTING["looks"] + 1)


def ours() -> dict[str, Any]:
    """What this library does; the last step, whose mask update is exact, is left out."""
    model = toy.net()
    steps = SETTING["steps"]
    method = Stds(depth=SETTING["depth"], ramp=SETTING["ramp"])
    pruner = sp.Pruner(model, method, sp.Constant(0.5, begin=0, end=steps, every=steps), exclude=["6"])
    optimizer = _sgd(model)
    pruner.attach(optimizer)
    found: list[dict[str, Any]] = []

    def after(step: int) -> None:
        if step % _EVERY == 0 and len(found) < SETTING["looks"]:
            values = {n: w for n, w in toy.weights(model).items() if n in pruner.masks}
            found.append(toy.entry({n: w != 0 for n, w in values.items()}, values))

    toy.train(model, optimizer, steps - 1, after)
    return {"updates": found}


def theirs(checkout: Path) -> dict[str, Any]:
    """What the authors' code does."""
    run_on_the_cpu(checkout / "CIFAR10")
    train = types.ModuleType("train")
    text = (checkout / "CIFAR10" / "train.py").read_text()
    ramp = text[text.index("def sineInc") : text.index("def linearInc")]
    exec(ramp, {"math": math}, vars(train))  # their file runs a training when it is imported
    vars(train)["args"] = SimpleNamespace(sparse_function="stmod", gradual="sine", flat_width=SETTING["depth"])
    sys.modules["train"] = train
    from model import PConv

    model = toy.net(PConv)
    layers = [m for m in model.modules() if isinstance(m, PConv)]
    names = {f"{n}.weight": m for n, m in model.named_modules() if isinstance(m, PConv)}
    found: list[dict[str, Any]] = []

    def after(step: int) -> None:
        width = vars(train)["sineInc"](step, SETTING["steps"]) * SETTING["depth"]
        for layer in layers:
            layer.setFlatWidth(width)
        if step % _EVERY == 0 and len(found) < SETTING["looks"]:
            values = {n: m.getSparseWeight() for n, m in names.items()}
            found.append(toy.entry({n: w != 0 for n, w in values.items()}, values))

    toy.train(model, _sgd(model), SETTING["steps"] - 1, after)
    return {"updates": found}


def _sgd(model: torch.nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), SETTING["lr"], SETTING["momentum"], weight_decay=SETTING["weight_decay"])


if __name__ == "__main__":
    raise SystemExit(compared(__doc__, FILE, SETTING, theirs, ours))
