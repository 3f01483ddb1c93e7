"""UPF's weight gates against its authors' code, in float64: which gates are open as they sharpen.

    python tests/authors/upf.py CHECKOUT [--write]

CHECKOUT is a clone of github.com/xyshi2000/Unstructured-Pruning (made at commit 175134e). Their `Mask`, `PenaltyTerm`
and `TemperatureScheduler` run as they are, in convolutions of a small network; both sides train weights and gates by
SGD. The first step is an ordinary one on both sides.
"""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import spikeprune as sp
from spikeprune.methods.upf import Upf

sys.path.insert(0, str(Path(__file__).parents[1]))
from authors import toy
from authors.exact import NUMBERS, compared, run_on_the_cpu

FILE = NUMBERS / "upf.json"
SETTING: dict[str, Any] = {
    "repository": "github.com/xyshi2000/Unstructured-Pruning",
    "commit": "175134e",
    "network": "toy, 594 weights in convolutions",
    "steps": 36,
    "looks": 6,
    "penalty": 0.0002,
    "first": 2.0,
    "last": 50.0,
    "lr": 0.3,
    "mask_rate": 2.0,
    "dtype": "float64",
    "made": "python tests/authors/upf.py CHECKOUT --write",
}
_EVERY = SETTING["steps"] // (SETTING["looks"] + 1)


def ours() -> dict[str, Any]:
    """What this library does; the last step, whose mask update is exact, is left out."""
    model, steps = toy.net(), SETTING["steps"]
    method = Upf(**{key: SETTING[key] for key in ("penalty", "mask_rate", "first", "last")})
    pruner = sp.Pruner(model, method, sp.Constant(0.5, begin=0, end=steps, every=steps), exclude=["6"])
    optimizer = torch.optim.SGD(model.parameters(), SETTING["lr"])
    pruner.attach(optimizer)
    found: list[dict[str, Any]] = []

    def after(step: int) -> None:
        if step % _EVERY == 0 and len(found) < SETTING["looks"]:
            memory = pruner._updater.memory
            found.append(toy.entry({n: gate > 0 for n, gate in memory["gate"].items()}, memory["theta"]))

    toy.train(model, optimizer, steps - 1, after)
    return {"updates": found}


def theirs(checkout: Path) -> dict[str, Any]:
    """What the authors' code does."""
    run_on_the_cpu(checkout)
    from models.submodules import sparse
    from sparsity.penalty_term import PenaltyTerm
    from sparsity.temp_scheduler import TemperatureScheduler

    normal = torch.normal

    def on_the_cpu(mean: float, std: float, size: Any, device: str) -> Tensor:
        return normal(mean, std, size=size).double()

    class Gated(sparse.ConvBlock):
        """Their block with the convolution alone, on one time step."""

        def __init__(self, *arguments: Any, **keywords: Any) -> None:
            super().__init__(nn.Conv2d(*arguments, **keywords), None, None, sparse_weights=True)

        @property
        def weight(self) -> Tensor:
            return self.conv.weight

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.weight_mask(self.conv.weight), padding=self.conv.padding)

    model = toy.net(Gated)
    blocks = [m for m in model.modules() if isinstance(m, Gated)]
    names = {f"{n}.weight": m for n, m in model.named_modules() if isinstance(m, Gated)}
    found: list[dict[str, Any]] = []
    weights = torch.optim.SGD(model.parameters(), SETTING["lr"])
    x, y = toy.batch(1)
    F.cross_entropy(model(x), y).backward()  # the ordinary step: their masks are not made yet
    weights.step()
    torch.normal = on_the_cpu  # type: ignore[assignment]
    masks = [mask for block in blocks for mask in block.init_mask(0.0, 0.0)]
    torch.normal = normal
    for block in blocks:
        block._pruning(True)
        block.weight_mask.lmbda = 1.0
    model.calc_c = lambda: None  # type: ignore[assignment]
    penalty = PenaltyTerm(model, SETTING["penalty"])
    schedule = TemperatureScheduler(model, SETTING["first"], SETTING["last"], 0, SETTING["steps"])
    schedule.step()
    gates = torch.optim.SGD(masks, SETTING["lr"] * SETTING["mask_rate"])
    for step in range(2, SETTING["steps"]):
        x, y = toy.batch(step)
        weights.zero_grad()
        gates.zero_grad()
        (F.cross_entropy(model(x), y) + penalty()).backward()
        weights.step()
        gates.step()
        schedule.step()
        if step % _EVERY == 0 and len(found) < SETTING["looks"]:
            values = {n: m.conv.weight.detach() for n, m in names.items()}
            found.append(toy.entry({n: m.weight_mask.mask_value.detach() > 0 for n, m in names.items()}, values))
    return {"updates": found}


if __name__ == "__main__":
    raise SystemExit(compared(__doc__, FILE, SETTING, theirs, ours))
