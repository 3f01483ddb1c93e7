"""Early-Time against the code of its authors: how many time steps the search takes, for 12 tables of answers.

    python tests/authors/early_time.py CHECKOUT [--write]

CHECKOUT is a clone of github.com/Intelligent-Computing-Lab-Yale/Exploring-Lottery-Ticket-Hypothesis-in-SNNs (made at
commit 05602e8). Their function `find_ET_ticket` is taken out of its script, which trains as it is imported, and runs as
it is on a model that answers from a table; the loader that it makes hands over one batch. It averages the divergence
over classes too, which changes no share of the largest one.
"""

import ast
import contextlib
import io
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spikeprune.lab.train.early_time import fewer_steps
from spikeprune.lab.train.network import TimedNetwork

sys.path.insert(0, str(Path(__file__).parents[1]))
from authors.exact import NUMBERS, compared, run_on_the_cpu, uniform

FILE = NUMBERS / "early_time.json"
SETTING: dict[str, Any] = {
    "repository": "github.com/Intelligent-Computing-Lab-Yale/Exploring-Lottery-Ticket-Hypothesis-in-SNNs",
    "commit": "05602e8",
    "tables": 12,
    "T": 5,
    "images": 8,
    "classes": 4,
    "dtype": "float64",
    "made": "python tests/authors/early_time.py CHECKOUT --write",
}


class Table(nn.Module):
    """Logits [T, N, K]. In three of four tables one time step outweighs the others: 5, 4 or 2 steps are chosen then."""

    def __init__(self, number: int):
        super().__init__()
        self.T = self.total_timestep = SETTING["T"]
        shape = (SETTING["T"], SETTING["images"], SETTING["classes"])
        logits = 6 * uniform(shape, 70 + number)
        if number % 4:
            logits[(3, 4, 2)[number % 4 - 1]] *= 6
        if number % 4 == 3:
            logits[3] = -logits[2]  # what the third step says is taken back
        self.register_buffer("logits", logits)

    def forward(self, x: Tensor) -> Tensor:
        steps = min(self.T, self.total_timestep)
        return self.get_buffer("logits")[:steps]


def ours() -> dict[str, Any]:
    """What this library chooses."""
    adapter: Any = SimpleNamespace(reset=lambda _: None, states=lambda _: None, restore=lambda *_: None)
    found: list[dict[str, Any]] = []
    for number in range(SETTING["tables"]):
        network = TimedNetwork(Table(number), adapter, "image", SETTING["T"], "mean")
        found.append(_entry(fewer_steps(network, torch.zeros(SETTING["images"], 1), False)))
    return {"updates": found}


def theirs(checkout: Path) -> dict[str, Any]:
    """What the authors' function chooses."""
    script = checkout / "train_snn_earlyT_laterewindlth.py"
    tree = ast.parse(script.read_text())
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "find_ET_ticket"]
    run_on_the_cpu(checkout)
    batch = [(torch.zeros(SETTING["images"], 1), torch.zeros(SETTING["images"]))]
    data = SimpleNamespace(DataLoader=lambda *_, **__: batch)
    stand_in = SimpleNamespace(no_grad=torch.no_grad, utils=SimpleNamespace(data=data))
    space: dict[str, Any] = {"torch": stand_in, "nn": nn, "F": F, "reset_net": lambda _: None}
    exec(compile(tree, str(script), "exec"), space)
    found: list[dict[str, Any]] = []
    for number in range(SETTING["tables"]):
        with contextlib.redirect_stdout(io.StringIO()):
            chosen = space["find_ET_ticket"](SimpleNamespace(timestep=SETTING["T"]), Table(number), None, 0)
        found.append(_entry(chosen))
    return {"updates": found}


def _entry(steps: int) -> dict[str, Any]:
    """In the form of the other comparisons."""
    return {"kept": [steps], "masks": f"{steps} time steps", "weights": {}}


if __name__ == "__main__":
    raise SystemExit(compared(__doc__, FILE, SETTING, theirs, ours))
