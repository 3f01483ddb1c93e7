"""Criticality with rule="authors" against the authors' unstructured code, in float64, over 20 mask updates.

    python tests/authors/criticality.py CHECKOUT            # theirs beside ours: names what differs, exits 1
    python tests/authors/criticality.py CHECKOUT --write    # keeps their numbers in tests/authors/numbers/

CHECKOUT is a clone of github.com/MmPple/pruning-criticality (made at commit ee3170e). Their `SpikeModel`, their VGG
from a short plan and their `Masking` run as they are; only `.cuda()` and two old imports are stubbed. Weights and
inputs come from `exact.uniform`, so both sides start alike and need no seed of a random generator.
"""

import argparse
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, layer
from torch import Tensor, nn

import spikeprune as sp
from spikeprune.zoo.net import SpikingNet
from spikeprune.zoo.paper import WEIGHTS
from spikeprune.zoo.readout import LOSSES

sys.path.insert(0, str(Path(__file__).parents[1]))
from authors.exact import NUMBERS, mask_digest, run_on_the_cpu, uniform, value_digest

FILE = NUMBERS / "criticality.json"
SETTING: dict[str, Any] = {
    "repository": "github.com/MmPple/pruning-criticality",
    "commit": "ee3170e",
    "plan": [8, "pool", 12, 12],
    "classes": 5,
    "batch": 6,
    "size": 8,
    "T": 3,
    "sparsity": 0.9,
    "share": 0.2,
    "every": 3,
    "updates": 20,
    "lr": 0.3,
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "seed": 5,
    "dtype": "float64",
    "made": "python tests/authors/criticality.py CHECKOUT --write",
}


def batch(step: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets of a step."""
    x = 2 * uniform((SETTING["batch"], 3, SETTING["size"], SETTING["size"]), 1_000 + step)
    y = ((uniform((SETTING["batch"],), 5_000 + step) + 1) / 2 * SETTING["classes"]).long()
    return x, y


def fill(model: nn.Module) -> None:
    """The starting weights, by order of the layers, so that both sides get the same."""
    order = 0
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                shape = tuple(module.weight.shape)
                scale = (3 / module.weight[0].numel()) ** 0.5 * 1.4
                module.weight.copy_(uniform(shape, SETTING["seed"] + order) * scale)
                if module.bias is not None:
                    module.bias.zero_()
                order += 1


def ours(rule: str = "authors", updates: int = SETTING["updates"]) -> list[dict[str, Any]]:
    """What this library does: one entry a mask update."""
    conv = lambda a, b: layer.Conv2d(a, b, 3, padding=1, bias=False)  # noqa: E731
    stem = nn.Sequential(conv(3, 8), WEIGHTS.norm(8))
    body = [WEIGHTS.neuron(False), layer.AvgPool2d(2, 2)]
    for a, b in ((8, 12), (12, 12)):
        body += [conv(a, b), WEIGHTS.norm(b), WEIGHTS.neuron(False)]
    body += [layer.AdaptiveAvgPool2d(1), layer.Flatten()]
    net = SpikingNet(
        stem, nn.Sequential(*body), layer.Linear(12, SETTING["classes"]), T=SETTING["T"],
        image_shape=(3, SETTING["size"], SETTING["size"]), repeat="image", readout="mean-over-T",
    ).double()  # fmt: skip
    fill(net)
    steps = SETTING["updates"] * SETTING["every"]
    method = sp.Criticality(
        regrow=sp.Constant(SETTING["share"]), curve="value", surrogate="dspike", momentum="warm", rule=rule
    )
    pruner = sp.Pruner(net, method, sp.Cubic(to=SETTING["sparsity"], begin=0, end=steps, every=SETTING["every"]))
    optimizer = torch.optim.SGD(
        net.parameters(), SETTING["lr"], SETTING["momentum"], weight_decay=SETTING["weight_decay"]
    )
    pruner.attach(optimizer)
    found = []
    for step in range(1, updates * SETTING["every"] + 1):
        x, y = batch(step)
        optimizer.zero_grad()
        functional.reset_net(net)
        loss = LOSSES["mean-over-T"](net(x), y)
        loss.backward()
        optimizer.step()
        if step % SETTING["every"] == 0:
            weights = dict(net.named_parameters())
            names = [n for n, _ in net.named_parameters() if n in pruner.masks]
            found.append(_entry(float(loss.detach()), [pruner.masks[n] for n in names], [weights[n] for n in names]))
    return found


def theirs(checkout: Path) -> list[dict[str, Any]]:
    """What the authors' code does."""
    run_on_the_cpu(checkout / "weight_pruning")
    from core import Masking
    from models.spike_model import SpikeModel
    from models.vggcifar import VGG, make_layers

    plan = ["M" if width == "pool" else width for width in SETTING["plan"]]
    net = VGG(make_layers(plan, batch_norm=True), num_classes=SETTING["classes"])
    net.classifier = nn.Linear(12, SETTING["classes"])
    model = SpikeModel(net, SETTING["T"])
    model.set_spike_state(True)
    model = model.double()
    fill(model)
    epochs = 10
    steps = SETTING["updates"] * SETTING["every"]
    arguments = SimpleNamespace(
        final_sparsity=SETTING["sparsity"], init_density=1.0, update_frequency=SETTING["every"],
        init_prune_epoch=0, final_prune_epoch=epochs, proportion=False,
    )  # fmt: skip
    optimizer = torch.optim.SGD(
        model.parameters(), SETTING["lr"], SETTING["momentum"], weight_decay=SETTING["weight_decay"]
    )
    masking = Masking(optimizer, prune_rate=SETTING["share"], args=arguments, train_loader=range(steps // epochs))
    masking.add_module(model)
    found = []
    for step in range(1, steps + 1):
        x, y = batch(step)
        optimizer.zero_grad()
        output, potentials = model(x)
        loss = F.cross_entropy(output, y) / SETTING["T"]
        loss.backward()
        masking.step(potentials, None)
        if step % SETTING["every"] == 0:
            weights = dict(model.named_parameters())
            names = [n for n, _ in model.named_parameters() if n in masking.masks]
            found.append(_entry(float(loss.detach()), [masking.masks[n] for n in names], [weights[n] for n in names]))
    return found


def _entry(loss: float, masks: list[Tensor], weights: list[Tensor]) -> dict[str, Any]:
    number = {str(i): m for i, m in enumerate(masks)}
    return {
        "loss": round(loss, 9),
        "kept": [int((m != 0).sum()) for m in masks],
        "masks": mask_digest(number),
        "weights": value_digest({str(i): w for i, w in enumerate(weights)}),
    }


def differing(a: list[dict[str, Any]], b: list[dict[str, Any]], key: str = "masks") -> list[int]:
    """Numbers of the mask updates, from 1, whose entry differs."""
    return [i for i, (x, y) in enumerate(zip(a, b, strict=True), 1) if x[key] != y[key]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = theirs(arguments.checkout)
    mine = ours()
    for number, (a, b) in enumerate(zip(found, mine, strict=True), 1):
        print(number, "theirs", a["kept"], a["loss"], "ours", b["kept"], b["loss"], a["masks"] == b["masks"])
    differ = differing(found, mine)
    print(f"{len(found) - len(differ)} of {len(found)} mask updates are equal")
    if arguments.write:
        FILE.write_text(
            json.dumps(
                {"setting": SETTING, "equal": [n not in differ for n in range(1, len(found) + 1)], "theirs": found},
                indent=1,
            )
            + "\n"
        )
    return bool(differ)


if __name__ == "__main__":
    raise SystemExit(main())
