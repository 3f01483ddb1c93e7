"""The same model as own_model.py under Lightning: the Pruner is a callback of a few lines, and checkpoints hold it.

python examples/with_lightning.py
"""

from typing import Any

import lightning as L
import torch
from own_model import build
from spikingjelly.activation_based import functional
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import spikeprune as sp


class Prune(L.Callback):
    """Attaches a Pruner when training starts, and saves and loads its state with Lightning's checkpoints."""

    def __init__(self, method: Any, schedule: Any, **settings: Any) -> None:
        self.method, self.schedule, self.settings = method, schedule, settings
        self.pruner: sp.Pruner | None = None
        self._saved: dict[str, Any] | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.pruner = sp.Pruner(pl_module, self.method, self.schedule, **self.settings)
        self.pruner.attach(trainer.optimizers[0])
        if self._saved is not None:
            self.pruner.load_state_dict(self._saved)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.pruner is not None:
            self.pruner.finish()

    def state_dict(self) -> dict[str, Any]:
        return {} if self.pruner is None else self.pruner.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._saved = state_dict or None


class Digits(L.LightningModule):
    """Your own module; nothing in it knows of pruning."""

    def __init__(self, T: int = 2) -> None:
        super().__init__()
        self.net, self.T = build(), T

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        images, labels = batch
        functional.reset_net(self.net)
        return cross_entropy(self.net(images.expand(self.T, *images.shape)), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def train(x: torch.Tensor, y: torch.Tensor, epochs: int = 5, sparsity: float = 0.9, **trainer: Any):
    """Images [N, 1, 8, 8] and labels [N]; returns the module and the Pruner."""
    loader = DataLoader(TensorDataset(x, y), batch_size=64, shuffle=True)
    steps = epochs * len(loader)
    schedule = sp.Cubic(to=sparsity, begin=0, end=steps * 2 // 3, every=max(steps // 10, 1))
    prune, module = Prune(sp.Criticality(regrow=0.2), schedule), Digits()
    L.Trainer(max_epochs=epochs, callbacks=[prune], logger=False, **trainer).fit(module, loader)
    return module, prune.pruner


if __name__ == "__main__":
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    print(train(images, torch.tensor(digits.target))[1])
