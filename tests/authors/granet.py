"""GraNet against its authors' code, in float64, over every mask update but their last, which cuts nothing.

    python tests/authors/granet.py CHECKOUT [--write]

CHECKOUT is a clone of github.com/VITA-Group/GraNet (made at commit f338a24). Their `Masking` (method "GraNet") runs as
it is. Both sides start from the same half dense masks. Their counts differ from ours by rounding, so this library is
given theirs: one weight fewer than counted is kept, and replaced shares are rounded up.
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

import spikeprune as sp
from spikeprune.core.schedule import Schedule
from spikeprune.methods.granet import GraNet

sys.path.insert(0, str(Path(__file__).parents[1]))
from authors import toy
from authors.exact import NUMBERS, compared, run_on_the_cpu

FILE = NUMBERS / "granet.json"
SETTING: dict[str, Any] = {
    "repository": "github.com/VITA-Group/GraNet",
    "commit": "f338a24",
    "network": "toy, 626 weights",
    "updates": 6,
    "every": 3,
    "initial density": 0.5,
    "final density": 0.1,
    "share": 0.3,
    "lr": 0.2,
    "momentum": 0.9,
    "weight_decay": 1e-3,
    "seed": 60,
    "dtype": "float64",
    "made": "python tests/authors/granet.py CHECKOUT --write",
}
_LAST = SETTING["updates"] + 1  # their schedule's last mask update, which does not cut


def _density(number: int) -> float:
    first, last = SETTING["initial density"], SETTING["final density"]
    return 1 - ((1 - first) + (first - last) * (1 - (1 - number / _LAST) ** 3))


@dataclass(frozen=True)
class TheirCounts(Schedule):
    """Keeps what theirs keeps: the weights above the one that their count ends at."""

    to: float = 0.9
    total: int = 626

    def at(self, progress: float) -> float:
        return self.value(round(progress * SETTING["updates"]), SETTING["updates"])

    def value(self, number: int, count: int) -> float:
        return 1 - (int(self.total * _density(number)) - 1) / self.total


class RoundedUp(GraNet):
    """GraNet with their rounding of the share that a layer exchanges."""

    def survivors(self, kept: int, alive: int, share: float) -> int:
        return kept - math.ceil(share * kept)


def ours() -> dict[str, Any]:
    """What this library does, with their counts."""
    model = toy.net()
    schedule = TheirCounts(begin=0, end=SETTING["updates"] * SETTING["every"], every=SETTING["every"])
    method = RoundedUp(sp.Constant(SETTING["share"]))
    pruner = sp.Pruner(model, method, schedule, floor=0, masks=toy.masks(model, 0.5, SETTING["seed"]))
    optimizer = _sgd(model)
    pruner.attach(optimizer)
    found: list[dict[str, Any]] = []

    def after(step: int) -> None:
        if step % SETTING["every"] == 0:
            found.append(toy.entry(dict(pruner.masks), toy.weights(model)))

    toy.train(model, optimizer, SETTING["updates"] * SETTING["every"], after)
    return {"updates": found}


def theirs(checkout: Path) -> dict[str, Any]:
    """What the authors' code does."""
    run_on_the_cpu(checkout / "CIFAR")
    from sparselearning.core import Masking

    model = toy.net()
    optimizer = _sgd(model)
    arguments = SimpleNamespace(
        sparse_init="ERK", fix=False, update_frequency=SETTING["every"], method="GraNet", rm_first=False, multiplier=1,
        init_density=SETTING["initial density"], final_density=SETTING["final density"], init_prune_epoch=0,
        final_prune_epoch=1, pruning_rate=0.5,
    )  # fmt: skip
    rate = SimpleNamespace(step=lambda: None, get_dr=lambda: SETTING["share"])
    masking = Masking(
        optimizer, prune_rate=SETTING["share"], death_mode="magnitude", prune_rate_decay=rate, growth_mode="gradient",
        redistribution_mode="none", args=arguments, train_loader=range(_LAST * SETTING["every"]),
    )  # fmt: skip
    masking.add_module(model)
    model.load_state_dict(toy.net().state_dict())  # their random start mask has zeroed weights
    masking.masks = {n: m.double() for n, m in toy.masks(model, 0.5, SETTING["seed"]).items()}
    masking.apply_mask()
    found: list[dict[str, Any]] = []

    def after(step: int) -> None:
        if step % SETTING["every"] == 0:
            found.append(toy.entry(masking.masks, toy.weights(model)))

    acting = SimpleNamespace(zero_grad=optimizer.zero_grad, step=masking.step)
    toy.train(model, acting, SETTING["updates"] * SETTING["every"], after)
    return {"updates": found}


def _sgd(model: torch.nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), SETTING["lr"], SETTING["momentum"], weight_decay=SETTING["weight_decay"])


if __name__ == "__main__":
    raise SystemExit(compared(__doc__, FILE, SETTING, theirs, ours))
