"""SNIP against its published PyTorch code, in float64: the mask at three sparsities.

    python tests/authors/snip.py CHECKOUT [--write]

CHECKOUT is a clone of github.com/mil-ad/snip (made at commit 883c805), which is not the authors' own code; theirs is in
TensorFlow 1. It draws the weights anew before it scores; that draw is switched off, so that both sides score the same.
"""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

import spikeprune as sp

sys.path.insert(0, str(Path(__file__).parents[1]))
from authors import toy
from authors.exact import NUMBERS, compared

FILE = NUMBERS / "snip.json"
SETTING: dict[str, Any] = {
    "repository": "github.com/mil-ad/snip",
    "commit": "883c805",
    "network": "toy, 626 weights",
    "sparsities": [0.5, 0.9, 0.98],
    "dtype": "float64",
    "made": "python tests/authors/snip.py CHECKOUT --write",
}


def ours() -> dict[str, Any]:
    """One pruning before training at each sparsity."""
    found: list[dict[str, Any]] = []
    for sparsity in SETTING["sparsities"]:
        model = toy.net()
        masks = sp.prune(model, "snip", sparsity=sparsity, data=[toy.batch(1)], loss=F.nll_loss, floor=0)
        found.append(toy.entry(dict(masks), {}))
    return {"updates": found}


def theirs(checkout: Path) -> dict[str, Any]:
    """Their masks."""
    sys.path.insert(0, str(checkout))
    torch.nn.init.xavier_normal_ = lambda tensor, *_: tensor  # type: ignore[assignment]
    from snip import SNIP

    found: list[dict[str, Any]] = []
    for sparsity in SETTING["sparsities"]:
        model = toy.net()
        keep = SNIP(model, 1 - sparsity, [toy.batch(1)], torch.device("cpu"))
        names = [n for n, p in model.named_parameters() if p.dim() > 1]
        found.append(toy.entry(dict(zip(names, keep, strict=True)), {}))
    return {"updates": found}


if __name__ == "__main__":
    raise SystemExit(compared(__doc__, FILE, SETTING, theirs, ours))
