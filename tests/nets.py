"""Toy networks that run in milliseconds, and a training loop as a user would write it."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import Tensor, nn

T, N, SIZE, CLASSES = 3, 4, 8, 5


def lif(**keywords: Any) -> neuron.LIFNode:
    return neuron.LIFNode(tau=2.0, surrogate_function=surrogate.ATan(alpha=2.0), **keywords)


def conv_net(step_mode: str = "m", seed: int = 0) -> nn.Sequential:
    """conv-BN-LIF-pool-conv-BN-LIF-classifier: 2*4*9 + 4*6*9 + 96*5 = 72 + 216 + 480 = 768 prunable weights."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        layer.Conv2d(2, 4, 3, padding=1, bias=False),
        layer.BatchNorm2d(4),
        lif(),
        layer.MaxPool2d(2, 2),
        layer.Conv2d(4, 6, 3, padding=1, bias=False),
        layer.BatchNorm2d(6),
        lif(),
        layer.Flatten(),
        layer.Linear(96, CLASSES),
    )
    functional.set_step_mode(net, step_mode)
    return net


def mlp(seed: int = 0) -> nn.Sequential:
    """A plain network without spikes: 40 + 24 weights."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))


def batch(step: int) -> tuple[Tensor, Tensor]:
    """The batch of a step, the same in every run: [T, N, C, H, W] and labels."""
    generator = torch.Generator().manual_seed(1000 + step)
    x = torch.rand(T, N, 2, SIZE, SIZE, generator=generator)
    return x, torch.randint(CLASSES, (N,), generator=generator)


def loss_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x).mean(0), y)


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: int,
    *,
    first: int = 1,
    after: Callable[[int], None] | None = None,
) -> list[float]:
    """Steps `first` .. `first + steps - 1` of an ordinary loop; the losses. `after(step)` runs behind each."""
    losses = []
    for step in range(first, first + steps):
        x, y = batch(step)
        loss = loss_of(model, x, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        functional.reset_net(model)
        losses.append(loss.item())
        if after is not None:
            after(step)
    return losses


def sgd(model: nn.Module, lr: float = 0.1) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=1e-3)


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(a: dict[str, Any], b: dict[str, Any]) -> None:
    """Bit for bit, through nested dictionaries and lists."""
    assert a.keys() == b.keys()
    for key in a:
        _assert_equal(a[key], b[key], str(key))


def _assert_equal(a: Any, b: Any, place: str) -> None:
    if isinstance(a, Tensor):
        assert a.dtype == b.dtype, place
        assert torch.equal(a, b), place
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), place
        for key in a:
            _assert_equal(a[key], b[key], f"{place}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), place
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            _assert_equal(x, y, f"{place}[{i}]")
    else:
        assert a == b, place
