"""GraSP against its authors' code, in float64: the masks of three sparsities, of a plain and of a spiking network.

    python tests/authors/grasp.py CHECKOUT [--write]

CHECKOUT is a clone of github.com/alecwangcq/GraSP (made at commit f17d87a). Their function runs as it is, without its
new draw of the classifier's weights. It sorts its samples by class and takes one half after the other; here these are
two batches. It keeps one weight more than the sparsity says, and so does this comparison.
"""

import contextlib
import io
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, neuron, surrogate
from torch import Tensor, nn

import spikeprune as sp

sys.path.insert(0, str(Path(__file__).parents[1]))
from authors import toy
from authors.exact import NUMBERS, compared, uniform

FILE = NUMBERS / "grasp.json"
SETTING: dict[str, Any] = {
    "repository": "github.com/alecwangcq/GraSP",
    "commit": "f17d87a",
    "network": "toy, 626 weights, with tanh and with LIF neurons over 3 time steps",
    "keep": [314, 64, 14],
    "temperature": 200,
    "dtype": "float64",
    "made": "python tests/authors/grasp.py CHECKOUT --write",
}
_CLASSES, _EACH = 4, 2
_RUNS = [(spiking, keep) for spiking in (False, True) for keep in SETTING["keep"]]


class Timed(nn.Module):
    """The toy network with neurons in place of tanh: the mean of its outputs over 3 time steps."""

    def __init__(self) -> None:
        super().__init__()
        self.net = toy.net()
        for place in (1, 3):
            self.net[place] = neuron.LIFNode(v_threshold=0.2, surrogate_function=surrogate.ATan())

    def forward(self, x: Tensor) -> Tensor:
        functional.reset_net(self.net)
        return torch.stack([self.net(x * (1 + 0.5 * t)) for t in range(3)]).mean(0)


def samples() -> tuple[Tensor, Tensor]:
    """Two samples of each class, and one more of each, by which their loader sees that it has enough; in this order."""
    order = [c for c in range(_CLASSES) for _ in range(_EACH)] + list(range(_CLASSES))
    return uniform((len(order), 3, 5, 5), 77), torch.tensor(order)


def _made(spiking: bool) -> nn.Module:
    return Timed() if spiking else toy.net()


def ours() -> dict[str, Any]:
    """One pruning before training at each sparsity."""
    x, y = (value[: _CLASSES * _EACH] for value in samples())
    half = len(y) // 2
    found: list[dict[str, Any]] = []
    for spiking, keep in _RUNS:
        data = [(x[:half], y[:half]), (x[half:], y[half:])]
        masks = sp.prune(_made(spiking), sp.Grasp(), 1 - keep / 626, data=data, loss=F.cross_entropy, floor=0)
        found.append(toy.entry(dict(masks), {}))
    return {"updates": found}


def theirs(checkout: Path) -> dict[str, Any]:
    """Their masks."""
    sys.path.insert(0, str(checkout))
    from pruner.GraSP import GraSP

    found: list[dict[str, Any]] = []
    for spiking, keep in _RUNS:
        model = _made(spiking)
        with contextlib.redirect_stdout(io.StringIO()):
            kept = GraSP(
                model, 1 - (keep - 1.5) / 626, [samples()], torch.device("cpu"), _CLASSES, _EACH, T=200, reinit=False
            )  # fmt: skip
        names = {module: f"{name}.weight" for name, module in model.named_modules()}
        found.append(toy.entry({names[module]: mask for module, mask in kept.items()}, {}))
    return {"updates": found}


if __name__ == "__main__":
    raise SystemExit(compared(__doc__, FILE, SETTING, theirs, ours))
