"""`resnet19-weights-authors` with rule="authors" against the authors' ResNet-19, in float64, over 3 mask updates.

    python tests/authors/resnet19.py CHECKOUT            # theirs beside ours: names what differs, exits 1
    python tests/authors/resnet19.py CHECKOUT --write    # keeps their numbers in tests/authors/numbers/

CHECKOUT is a clone of github.com/MmPple/pruning-criticality (made at commit ee3170e). Their `SpikeModel` of `ResNet19`
and their `Masking` run as they are. Their code builds the shortcuts anew inside each block, so weights are filled by
module, not by order.
"""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional
from torch import Tensor, nn

import spikeprune as sp
from spikeprune import zoo
from spikeprune.zoo.readout import LOSSES

sys.path.insert(0, str(Path(__file__).parents[1]))
from authors.exact import NUMBERS, compared, mask_digest, run_on_the_cpu, uniform, value_digest

FILE = NUMBERS / "resnet19.json"
SETTING: dict[str, Any] = {
    "repository": "github.com/MmPple/pruning-criticality",
    "commit": "ee3170e",
    "network": "ResNet19, 10 classes, images 3x8x8, T = 5",
    "batch": 2,
    "sparsity": 0.9,
    "share": 0.2,
    "updates": 3,
    "lr": 0.3,
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "seed": 11,
    "dtype": "float64",
    "made": "python tests/authors/resnet19.py CHECKOUT --write",
}
STAGES = (3, 3, 2)


def batch(step: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets of a step."""
    x = 2 * uniform((SETTING["batch"], 3, 8, 8), 1_000 + step)
    return x, ((uniform((SETTING["batch"],), 5_000 + step) + 1) * 5).long()


def fill(layers: list[nn.Module]) -> None:
    """The starting weights of convolutions and classifier, in one order for both sides."""
    with torch.no_grad():
        for order, module in enumerate(layers):
            weight = module.weight
            weight.copy_(uniform(tuple(weight.shape), SETTING["seed"] + order) * (3 / weight[0].numel()) ** 0.5)
            if module.bias is not None:
                module.bias.zero_()


def filled() -> tuple[nn.Module, dict[int, int]]:
    """Our network with the starting weights, and the number of the layer that each weight belongs to."""
    net = zoo.build("resnet19-weights-authors", T=5, size=8).double()
    layers: list[nn.Module] = [net.stem]
    for block in net.body[: sum(STAGES)]:
        layers += [block.conv1, block.conv2]
        layers += [block.shortcut] if isinstance(block.shortcut, nn.Conv2d) else []
    fill([*layers, net.head])
    return net, {id(m.weight): i for i, m in enumerate([*layers, net.head])}


def logits() -> list[float]:
    """The mean logits of the first batch, in training mode."""
    with torch.no_grad():
        return [float(v) for v in filled()[0](batch(1)[0]).mean(0).flatten()]


def ours() -> dict[str, Any]:
    """What this library does."""
    net, owner = filled()
    method = sp.Criticality(
        regrow=sp.Constant(SETTING["share"]), curve="value", surrogate="dspike", momentum="warm", rule="authors"
    )
    pruner = sp.Pruner(net, method, sp.Cubic(to=SETTING["sparsity"], begin=0, end=SETTING["updates"], every=1))
    optimizer = torch.optim.SGD(
        net.parameters(), SETTING["lr"], SETTING["momentum"], weight_decay=SETTING["weight_decay"]
    )
    pruner.attach(optimizer)

    def step(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        functional.reset_net(net)
        logits = net(x)
        return logits.mean(0), LOSSES["mean-over-T"](logits, y)

    return _train(optimizer, step, lambda: {
        str(owner[id(net.get_parameter(n))]): m for n, m in pruner.masks.items()
    }, net, owner)  # fmt: skip


def theirs(checkout: Path) -> dict[str, Any]:
    """What the authors' code does."""
    run_on_the_cpu(checkout / "weight_pruning")
    from core import Masking
    from models.resnet import ResNet19
    from models.spike_model import SpikeModel

    model = SpikeModel(ResNet19(10), 5)
    model.set_spike_state(True)
    model = model.double()
    layers: list[Any] = [model.model.conv1]
    for stage in (model.model.layer1, model.model.layer2, model.model.layer3):
        for block in stage:
            layers += [block.conv1, block.conv2]
            layers += [block.downsample[0]] if block.downsample is not None else []
    layers = [getattr(m, "module", m) for m in [*layers, model.model.fc2]]
    layers = [m if hasattr(m, "weight") else next(c for c in m.modules() if hasattr(c, "weight")) for m in layers]
    fill(layers)
    owner = {id(m.weight): i for i, m in enumerate(layers)}
    arguments = SimpleNamespace(
        final_sparsity=SETTING["sparsity"], init_density=1.0, update_frequency=1,
        init_prune_epoch=0, final_prune_epoch=1, proportion=False,
    )  # fmt: skip
    optimizer = torch.optim.SGD(
        model.parameters(), SETTING["lr"], SETTING["momentum"], weight_decay=SETTING["weight_decay"]
    )
    masking = Masking(
        optimizer, prune_rate=SETTING["share"], args=arguments, train_loader=range(SETTING["updates"])
    )  # fmt: skip
    masking.add_module(model)
    seen: dict[str, Any] = {}

    def step(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        output, seen["potentials"] = model(x)
        return output, F.cross_entropy(output, y) / 5

    named = dict(model.named_parameters())
    optimizer_like = SimpleNamespace(zero_grad=optimizer.zero_grad, step=lambda: masking.step(seen["potentials"], None))
    return _train(optimizer_like, step, lambda: {
        str(owner[id(named[n])]): m for n, m in masking.masks.items()
    }, model, owner)  # fmt: skip


def _train(optimizer: Any, step: Any, masks: Any, model: nn.Module, owner: dict[int, int]) -> dict[str, Any]:
    found: dict[str, Any] = {"updates": []}
    for number in range(1, SETTING["updates"] + 1):
        x, y = batch(number)
        optimizer.zero_grad()
        output, loss = step(x, y)
        loss.backward()
        optimizer.step()
        if number == 1:
            found["logits"] = [round(float(v), 9) for v in output.detach().flatten()]
        values = {str(owner[id(p)]): p for p in model.parameters() if id(p) in owner}
        found["updates"].append({
            "loss": round(float(loss.detach()), 9),
            "kept": {n: int((m != 0).sum()) for n, m in sorted(masks().items(), key=lambda e: int(e[0]))},
            "masks": mask_digest(masks()),
            "weights": value_digest(values, 6),
        })  # fmt: skip
    return found


if __name__ == "__main__":
    raise SystemExit(compared(__doc__, FILE, SETTING, theirs, ours))
