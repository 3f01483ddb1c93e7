"""The same model as own_model.py in a loop of accelerate, on one process or several. `# +` marks what spikeprune adds.

accelerate launch examples/with_accelerate.py
"""

import torch
from accelerate import Accelerator
from own_model import build
from spikingjelly.activation_based import functional
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import spikeprune as sp  # +


def train(x: torch.Tensor, y: torch.Tensor, epochs: int = 5, T: int = 2, sparsity: float = 0.9):
    """Images [N, 1, 8, 8] and labels [N]; returns the trained model and the Pruner."""
    accelerator = Accelerator()
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loader = DataLoader(TensorDataset(x, y), batch_size=64, shuffle=True)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    steps = epochs * len(loader)
    schedule = sp.Cubic(to=sparsity, begin=0, end=steps * 2 // 3, every=max(steps // 10, 1))  # +
    pruner = sp.Pruner(model, sp.Criticality(regrow=0.2), schedule).attach(optimizer)  # +
    for _ in range(epochs):
        for images, labels in loader:
            optimizer.zero_grad()
            loss = cross_entropy(model(images.expand(T, *images.shape)), labels)
            accelerator.backward(loss)
            optimizer.step()
            functional.reset_net(model)
    pruner.finish()  # +
    return accelerator.unwrap_model(model), pruner


if __name__ == "__main__":
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    _, pruner = train(images, torch.tensor(digits.target))
    print(pruner)
