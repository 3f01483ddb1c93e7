"""SD-SNN against its authors' code, in float64: the masks of 30 epochs of one step, of a convolution and of a matrix.

    python tests/authors/sd_snn.py CHECKOUT [--write]

CHECKOUT is a folder with the files of examples/Structural_Development/SD-SNN of github.com/BrainCog-X/Brain-Cog (made
at commit 3998fd5). Their `Mask` runs as it is, with the sizes of a small network; `get_range_weight` is called for the
layer that is pruned, where their loop calls it for the last one alone. One layer is pruned in a run, by as many filters
as this file says, in place of their rates; what returns is theirs. The network is the one of dpap.py on both sides.
"""

import contextlib
import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import spikeprune as sp
from spikeprune.core.schedule import Schedule

sys.path.insert(0, str(Path(__file__).parents[1]))
from authors import toy
from authors.dpap import Net, train_step
from authors.exact import NUMBERS, compared, run_on_the_cpu

FILE = NUMBERS / "sd_snn.json"
SETTING: dict[str, Any] = {
    "repository": "github.com/BrainCog-X/Brain-Cog",
    "commit": "3998fd5",
    "network": "conv 3-6, conv 6-8 (pruned), Linear 72-10 (pruned) and 10-4; LIF neurons, 3 time steps",
    "epochs": 30,
    "patience": 2,
    "lr": 0.3,
    "dtype": "float64",
    "made": "python tests/authors/sd_snn.py CHECKOUT --write",
}
_LAYERS = {1: "feature.1.conv.weight", 8: "fc_prun.0.fc.weight"}
_TOTAL = {1: 432, 8: 720}
_LAST = 8  # the index of their last layer, which is a matrix
_counts: dict[int, list[int]] = {}


@dataclass(frozen=True)
class TheirCounts(Schedule):
    """Keeps what theirs keeps."""

    to: float = 0.9
    layer: int = 1

    def at(self, progress: float) -> float:
        return self.value(1, 1)

    def value(self, number: int, count: int) -> float:
        return 1 - _counts[self.layer][min(number, SETTING["epochs"]) - 1] / _TOTAL[self.layer]


def ours() -> dict[str, Any]:
    """What this library does, a mask update in each step."""
    patience, found = SETTING["patience"], list[dict[str, Any]]()
    if not _counts:
        kept = [sum(entry["kept"]) for entry in json.loads(FILE.read_text())["theirs"]["updates"]]
        looks = SETTING["epochs"] - 2 * patience - 1
        _take({1: kept[:looks], 8: kept[looks:]})
    for layer, name in _LAYERS.items():
        model = Net()
        # One mask update more than they have, so that the last one, which ends the method, is none of theirs.
        schedule = TheirCounts(begin=0, end=SETTING["epochs"] + 1, every=1, layer=layer)
        pruner = sp.Pruner(model, sp.SdSnn(patience), schedule, floor=0, include=[name.removesuffix(".weight")])
        optimizer = torch.optim.SGD(model.parameters(), SETTING["lr"])
        pruner.attach(optimizer)
        for epoch in range(SETTING["epochs"]):
            train_step(model, optimizer, 1 + epoch // 10)  # so that some dead kernels push for long
            if epoch > 2 * patience:
                found.append(toy.entry(dict(pruner.masks), {name: model.get_parameter(name)}))
    return {"updates": found}


def _take(kept: dict[int, list[int]]) -> None:
    """The counts of the mask updates that cut, and before them all."""
    first = 2 * SETTING["patience"] + 1
    _counts.update({layer: [_TOTAL[layer]] * first + counts for layer, counts in kept.items()})


def theirs(checkout: Path) -> dict[str, Any]:
    """What the authors' code does."""
    run_on_the_cpu(checkout)
    import prun_and_generation

    torch.set_default_dtype(torch.float64)
    torch.FloatTensor = torch.DoubleTensor
    patience, found, kept = SETTING["patience"], list[dict[str, Any]](), dict[int, list[int]]()
    for layer, name in _LAYERS.items():
        model = Net()
        model.convlayer = sorted({layer, _LAST})
        optimizer = torch.optim.SGD(model.parameters(), SETTING["lr"])
        mask = prun_and_generation.Mask(model, patience)
        pruned: Tensor = model.get_parameter(name)
        kept[layer] = []
        for epoch in range(SETTING["epochs"]):
            train_step(model, optimizer, 1 + epoch // 10)  # so that some dead kernels push for long
            with contextlib.redirect_stdout(io.StringIO()):
                if epoch == 0:
                    mask.init_length()
                    continue
                mask.get_range_weight(pruned.data * mask.codebook[layer], mask.model_length[layer], layer, patience)
                if layer != _LAST:  # their last layer rests
                    mask.cur_range_pos[_LAST][:], mask.cur_range_neg[_LAST][:] = 1e9, -1e9
                if epoch > patience:
                    mask.do_mask_dsd()
                if epoch > 2 * patience:
                    mask.do_growth_ww(epoch)
                    filters = min((epoch - 2 * patience) // 3, len(pruned) - 3)
                    mask.pruncc[layer] = mask.prune[layer] = 100 * (filters + 0.5) / len(pruned)
                    if layer != _LAST:
                        mask.prune[_LAST] = 0
                    mask.do_pruning_dsd(epoch + 60)
                    found.append(toy.entry({name: mask.codebook[layer]}, {name: pruned}))
                    kept[layer].append(sum(found[-1]["kept"]))
    torch.set_default_dtype(torch.float32)
    _counts.clear()
    _take(kept)
    return {"updates": found}


if __name__ == "__main__":
    raise SystemExit(compared(__doc__, FILE, SETTING, theirs, ours))
