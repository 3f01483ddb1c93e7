"""CH3-L3's growth against its authors' code, in float64: which links three rounds of removal and growth leave.

    python tests/authors/ch3_l3.py CHECKOUT [--write]

CHECKOUT is a clone of github.com/biomedical-cybernetics/Cannistraci-Hebb-training (made at commit d1677b5). The lines
of their `_dst_step` that score missing links by "CH3_L3n" are read from their file and run as they stand; the growth
behind them is their `scores >= thre`, without its draw. No code of arXiv:2511.05581 was at hand.
"""

import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from spikeprune.core.select import keep_top
from spikeprune.methods.ch3_l3 import predicted

sys.path.insert(0, str(Path(__file__).parents[1]))
from authors import toy
from authors.exact import NUMBERS, compared, uniform

FILE = NUMBERS / "ch3_l3.json"
SETTING: dict[str, Any] = {
    "repository": "github.com/biomedical-cybernetics/Cannistraci-Hebb-training",
    "commit": "d1677b5",
    "layers": [[24, 40], [40, 24], [16, 60]],
    "density": 0.12,
    "removed": 0.3,
    "rounds": 3,
    "dtype": "float64",
    "made": "python tests/authors/ch3_l3.py CHECKOUT --write",
}


def _rounds(score: Any, grow: Any) -> list[dict[str, Any]]:
    torch.set_default_dtype(torch.float64)
    try:
        found: list[dict[str, Any]] = []
        for layer, (rows, columns) in enumerate(SETTING["layers"]):
            count = round(SETTING["density"] * rows * columns)
            mask = keep_top({"w": uniform((rows, columns), 30 + layer)}, count)["w"]
            for number in range(SETTING["rounds"]):
                gone = int(SETTING["removed"] * count)
                mask = keep_top({"w": uniform((rows, columns), 100 * layer + number)}, count - gone, {"w": mask})["w"]
                scores = score(mask)
                mask = mask | grow(scores, mask, gone)
                count = int(mask.sum())
                entry = toy.entry({"w": mask}, {})
                entry["score sum"] = round(float((scores * ~mask).sum()), 8)
                found.append(entry)
        return found
    finally:
        torch.set_default_dtype(torch.float32)


def _and_ties(scores: Tensor, mask: Tensor, count: int) -> Tensor:
    cut = (scores * ~mask).ravel().sort().values[-count]
    return (scores >= cut) & ~mask


def ours() -> dict[str, Any]:
    """The scores of this library; links that tie with the last one grown come along, as in theirs."""
    return {"updates": _rounds(predicted, _and_ties)}


def theirs(checkout: Path) -> dict[str, Any]:
    """The authors' scores."""
    text = (checkout / "mlp_and_cnn" / "dst_scheduler.py").read_text()
    first = text.index("DTPATHS1 = mask1_total[l].clone().float()")
    last = text.index("scores = scores * (mask1_total[l] == 0)", first)
    code = textwrap.dedent(" " * 20 + text[first:last]).replace(".float()", ".double()")

    def score(mask: Tensor) -> Tensor:
        names: dict[str, Any] = {"torch": torch, "mask1_total": [mask.double()], "l": 0, "CH_method": "CH3"}
        names["self"] = SimpleNamespace()
        exec(code, names)
        return names["scores"]

    return {"updates": _rounds(score, _and_ties)}


if __name__ == "__main__":
    raise SystemExit(compared(__doc__, FILE, SETTING, theirs, ours))
