"""DPAP against its authors' code, in float64: the masks after 30 epochs of one sample, from the sixth on.

    python tests/authors/dpap.py CHECKOUT [--write]

CHECKOUT is a folder with the files of examples/Structural_Development/DPAP of github.com/BrainCog-X/Brain-Cog (made at
commit 3998fd5). Their `Mask` and `Trace` run as they are, with the sizes of a small network, and `BCM_and_trace` is
taken out of their script, which trains as it is imported. The network is this file's on both sides. They cut what
their rule says, and so does this comparison, by their counts.
"""

import ast
import contextlib
import io
import json
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, neuron, surrogate
from torch import Tensor, nn

import spikeprune as sp
from spikeprune.core.schedule import Schedule

sys.path.insert(0, str(Path(__file__).parents[1]))
from authors import toy
from authors.exact import NUMBERS, compared, run_on_the_cpu, uniform

FILE = NUMBERS / "dpap.json"
SETTING: dict[str, Any] = {
    "repository": "github.com/BrainCog-X/Brain-Cog",
    "commit": "3998fd5",
    "network": "conv 3-6, conv 6-8, Linear 72-10 (pruned) and 10-4; LIF neurons, 3 time steps",
    "epochs": 30,
    "before": 5,
    "lr": 0.05,
    "dtype": "float64",
    "made": "python tests/authors/dpap.py CHECKOUT --write",
}
_STEPS, _SIZE = 3, 3
_NAMES = {0: "feature.0.conv.weight", 1: "feature.1.conv.weight", 3: "fc_prun.0.fc.weight"}
_TOTAL = 162 + 432 + 720
_counts: list[int] = []


class Block(nn.Module):
    """A layer and its neuron, by their names."""

    def __init__(self, **layers: nn.Module) -> None:
        super().__init__()
        for name, module in layers.items():
            self.add_module(name, module)
        self.node = neuron.LIFNode(v_threshold=0.1, surrogate_function=surrogate.ATan())

    def forward(self, x: Tensor) -> Tensor:
        for module in self.children():
            x = module(x)
        return x


class Net(nn.Module):
    """With the attributes that their code reads; `seen` has the spikes of each time step as theirs gives them."""

    def __init__(self) -> None:
        super().__init__()
        convolutions = (nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.Conv2d(6, 8, 3, padding=1, bias=False))
        self.feature = nn.Sequential(*(Block(conv=conv) for conv in convolutions))
        self.fc_prun = nn.Sequential(Block(fc=nn.Linear(8 * _SIZE * _SIZE, 10, bias=False)))
        self.fc = nn.Sequential(Block(fc=nn.Linear(10, 4, bias=False)))
        self.seen: list[list[Tensor]] = []
        self.double()
        with torch.no_grad():
            for order, parameter in enumerate(self.parameters()):
                parameter.copy_(uniform(tuple(parameter.shape), 40 + order) * 0.5)

    def forward(self, x: Tensor) -> Tensor:
        functional.reset_net(self)
        self.seen, outputs = [], []
        for t in range(_STEPS):
            spikes = [x * (1 + 0.1 * t)]
            for block in self.feature:
                spikes.append(block(spikes[-1]))
            spikes.append(spikes[-1].flatten(1))
            spikes.append(self.fc_prun(spikes[-1]))
            self.seen.append([s.detach() for s in spikes])
            outputs.append(self.fc(spikes[-1]))
        return torch.stack(outputs).mean(0)


@dataclass(frozen=True)
class TheirCounts(Schedule):
    """Keeps what theirs keeps."""

    to: float = 0.9

    def at(self, progress: float) -> float:
        return self.value(1, 1)

    def value(self, number: int, count: int) -> float:
        return 1 - _counts[number - 1] / _TOTAL


def sample(step: int) -> tuple[Tensor, Tensor]:
    x, y = toy.batch(step)
    return x[:1, :, :_SIZE, :_SIZE], y[:1]


def ours() -> dict[str, Any]:
    """What this library does, a mask update in each step from the sixth on."""
    if not _counts:
        _counts.extend(sum(entry["kept"]) for entry in json.loads(FILE.read_text())["theirs"]["updates"])
    model = Net()
    schedule = TheirCounts(begin=SETTING["before"], end=SETTING["epochs"], every=1)
    pruner = sp.Pruner(model, sp.Dpap(), schedule, floor=0, exclude=["fc.0.fc"])
    optimizer = torch.optim.SGD(model.parameters(), SETTING["lr"])
    pruner.attach(optimizer)
    found: list[dict[str, Any]] = []
    for step in range(1, SETTING["epochs"] + 1):
        train_step(model, optimizer, step)
        if step > SETTING["before"]:
            found.append(_entry(dict(pruner.masks), model))
    return {"updates": found}


def train_step(model: Net, optimizer: torch.optim.Optimizer, step: int) -> None:
    """One step on one sample."""
    x, y = sample(step)
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()


def _entry(masks: dict[str, Tensor], model: Net) -> dict[str, Any]:
    return toy.entry(masks, {name: model.get_parameter(name) for name in _NAMES.values()})


def theirs(checkout: Path) -> dict[str, Any]:
    """What the authors' code does."""
    mask_model, space = _their_modules(checkout)
    torch.set_default_dtype(torch.float64)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), SETTING["lr"])
    mask, trace = mask_model.Mask(model, 1, _STEPS), mask_model.Trace(model, 1, _STEPS)
    mask.init_length()
    sizes = (mask_model.convlayer, mask_model.fclayer, mask_model.size, mask_model.fcsize)
    neuron_th, spines, bcm, epoch_trace = mask_model.init(1, *sizes)
    number = 0
    found: list[dict[str, Any]] = []
    for epoch in range(SETTING["epochs"]):
        x, y = sample(epoch + 1)
        loss = F.cross_entropy(model(x), y)
        epoch_trace, bcm, number = space["BCM_and_trace"](
            number, trace, model.seen, neuron_th, bcm, epoch_trace
        )  # fmt: skip
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for index in _NAMES:
            spines[index] = mask_model.unit_tensor(torch.sum(bcm[index], dim=1)) * mask_model.unit_tensor(
                epoch_trace[index]
            )
        if epoch >= SETTING["before"]:
            with contextlib.redirect_stdout(io.StringIO()):
                mask.init_mask(bcm, spines, epoch)
                mask.do_mask()
            found.append(_entry({name: mask.mat[index] for index, name in _NAMES.items()}, model))
    torch.set_default_dtype(torch.float32)
    _counts[:] = [sum(entry["kept"]) for entry in found]
    return {"updates": found}


def _their_modules(checkout: Path) -> tuple[Any, dict[str, Any]]:
    """Their file of masks with the small network's sizes, and `BCM_and_trace` of their script."""
    run_on_the_cpu(checkout)
    import math

    stubs: dict[str, dict[str, Any]] = {
        "torchvision": {}, "timm": {}, "timm.models": {"register_model": None}, "braincog": {}, "braincog.base": {},
        "braincog.base.node": {}, "braincog.base.node.node": {"math": math, "torch": torch, "nn": nn},
        "braincog.base.encoder": {}, "braincog.base.encoder.encoder": {}, "braincog.model_zoo": {},
        "braincog.model_zoo.base_module": {"BaseModule": nn.Module, "BaseConvModule": None, "BaseLinearModule": None},
    }  # fmt: skip
    for name, content in stubs.items():
        stub = types.ModuleType(name)
        vars(stub).update(content)
        sys.modules[name] = stub
    sys.modules["braincog.base.node.node"].LIFNode = None
    import mask_model

    mask_model.convlayer, mask_model.fclayer = [-1, 0, 1], [2, 3]
    mask_model.imgsize, mask_model.size, mask_model.size_pool = [_SIZE] * 3, [3, 6, 8], [3, 6, 8]
    mask_model.fcsize = [8 * _SIZE * _SIZE, 10]
    tree = ast.parse((checkout / "prun_main.py").read_text())
    tree.body = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "BCM_and_trace"]
    space = dict(vars(mask_model))
    exec(compile(tree, "prun_main.py", "exec"), space)
    return mask_model, space


if __name__ == "__main__":
    raise SystemExit(compared(__doc__, FILE, SETTING, theirs, ours))
