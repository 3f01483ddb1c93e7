"""A model and a training loop of your own, pruned to 90 %. The lines marked `# +` are all that spikeprune adds.

python examples/own_model.py                               # half a minute of one core
spikeprune run digits --model examples.own_model:build     # the same model from the command line
"""

import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn
from torch.nn.functional import cross_entropy

import spikeprune as sp  # +


class Block(nn.Module):
    """A residual block: the sum goes into the second neuron."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = layer.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = layer.BatchNorm2d(channels)
        self.fire1 = neuron.LIFNode(surrogate_function=surrogate.ATan())
        self.conv2 = layer.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = layer.BatchNorm2d(channels)
        self.fire2 = neuron.LIFNode(surrogate_function=surrogate.ATan())

    def forward(self, x):
        y = self.norm2(self.conv2(self.fire1(self.norm1(self.conv1(x)))))
        return self.fire2(y + x)


class Net(nn.Module):
    """Takes a time-first batch of images, [T, N, 1, 8, 8]; returns logits, [N, classes]."""

    def __init__(self, classes: int, channels: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            layer.Conv2d(1, channels, 3, padding=1, bias=False),
            layer.BatchNorm2d(channels),
            neuron.LIFNode(surrogate_function=surrogate.ATan()),
        )
        self.block = Block(channels)
        self.head = nn.Sequential(layer.AvgPool2d(2), layer.Flatten(), layer.Linear(channels * 16, classes))
        functional.set_step_mode(self, "m")

    def forward(self, x):
        return self.head(self.block(self.stem(x))).mean(0)


def build(classes: int = 10) -> nn.Module:
    """What `--model examples.own_model:build` calls."""
    return Net(classes)


def train(model: nn.Module, x: torch.Tensor, y: torch.Tensor, epochs: int = 30, T: int = 4) -> sp.Pruner:
    """An ordinary loop. Returns the Pruner, to look at its masks and rounds.

    A weight turns over in (1 - 0.9) / (2 * 0.2 * 5e-3) = 50 steps. Mask updates are 110 steps apart, so that regrown
    weights have time to grow (docs/guide/training.md, "When regrown weights die").
    """
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9, weight_decay=5e-3)
    steps = epochs * (len(x) // 64)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    schedule = sp.Cubic(to=0.9, begin=0, end=steps * 2 // 3, every=steps // 6)  # +
    pruner = sp.Pruner(model, sp.Criticality(regrow=0.2), schedule, exclude="head.2")  # + (the classifier stays dense)
    pruner.attach(optimizer)  # +
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(64)[: len(x) // 64]:
            loss = cross_entropy(model(x[batch].expand(T, -1, -1, -1, -1)), y[batch])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
            functional.reset_net(model)
    pruner.finish()  # +
    return pruner


@torch.no_grad()
def accuracy(model: nn.Module, x: torch.Tensor, y: torch.Tensor, T: int = 4) -> float:
    model.eval()
    right = (model(x.expand(T, -1, -1, -1, -1)).argmax(1) == y).float().mean().item()
    functional.reset_net(model)
    return right


def main() -> None:
    from sklearn.datasets import load_digits

    torch.set_num_threads(1)  # these layers are so small that a second thread would mostly wait
    torch.manual_seed(0)
    digits = load_digits()
    x = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    y = torch.tensor(digits.target)
    model = build()
    pruner = train(model, x[:1437], y[:1437])
    print(pruner.table())  # +
    first = pruner.rounds[0]  # +
    print(f"{first.survived} of {first.regrown} weights regrown at step {first.step} outlived the next cut")  # +
    print(f"accuracy {accuracy(model, x[1437:], y[1437:]):.4f} at sparsity {pruner.sparsity:.4f}")  # +


if __name__ == "__main__":
    main()
