"""A small network in float64 and its training: what comparisons with authors' code that needs no spikes run on."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from authors.exact import mask_digest, uniform, value_digest

Conv = Callable[..., nn.Module]


def net(conv: Conv = nn.Conv2d) -> nn.Sequential:
    """conv 3-6 (162 weights) - tanh - conv 6-8 (432) - tanh - mean over space - Linear 8-4 (32); 626 weights."""
    layers: list[Any] = [conv(3, 6, 3, padding=1, bias=False), nn.Tanh(), conv(6, 8, 3, padding=1, bias=False)]
    model = nn.Sequential(*layers, nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).double()
    with torch.no_grad():
        for order, parameter in enumerate(model.parameters()):
            parameter.copy_(uniform(tuple(parameter.shape), 40 + order) * 0.4)
    return model


def batch(step: int) -> tuple[Tensor, Tensor]:
    """Inputs [8, 3, 5, 5] and targets of a step."""
    return uniform((8, 3, 5, 5), 900 + step), ((uniform((8,), 700 + step) + 1) * 2).long()


def masks(model: nn.Module, density: float, seed: int) -> dict[str, Tensor]:
    """Random masks of the prunable weights; round(density * weights) of each layer are alive."""
    found: dict[str, Tensor] = {}
    for order, (name, weight) in enumerate(model.named_parameters()):
        if weight.dim() > 1:
            noise = uniform((weight.numel(),), seed + order)
            alive = torch.zeros(weight.numel(), dtype=torch.bool)
            alive[noise.argsort(descending=True)[: round(density * weight.numel())]] = True
            found[name] = alive.reshape(weight.shape)
    return found


def train(
    model: nn.Module,
    optimizer: Any,
    steps: int,
    after: Callable[[int], None],
    penalty: Callable[[], Tensor] | None = None,
) -> None:
    """Steps 1 .. `steps`; `after(step)` runs behind each."""
    for step in range(1, steps + 1):
        x, y = batch(step)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        if penalty is not None:
            loss = loss + penalty()
        loss.backward()
        optimizer.step()
        after(step)


def entry(found: dict[str, Tensor], values: dict[str, Tensor]) -> dict[str, Any]:
    """What is kept of a mask update: counts, a digest of the masks, and sums of |w|."""
    return {
        "kept": [int((found[n] != 0).sum()) for n in sorted(found)],
        "masks": mask_digest(found),
        "weights": value_digest(values, 8),
    }


def weights(model: nn.Module) -> dict[str, Tensor]:
    """The prunable weights by name."""
    return {n: p.detach() for n, p in model.named_parameters() if p.dim() > 1}
