"""Squeezes an architecture of each framework's own examples: `python study/squeeze/frameworks.py`, about two minutes.

SpikingJelly: CSNN of spikingjelly.activation_based.examples.conv_fashion_mnist, 16 channels, T = 4. snnTorch: the
network of its tutorial 6, 8 steps. Norse: the convolutional network of its README, 8 steps. All see scikit-learn's
digits, enlarged to 28x28. Training uses labels; squeezing does not. The results go to study/squeeze/frameworks.json.
"""

import copy
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import final

import norse.torch as norse
import snntorch
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from snntorch import surrogate
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor, nn

import spikeprune as sp

RESULTS = Path(__file__).parent / "frameworks.json"
SPARSITY, STEPS, TRAIN, IMAGES = 0.9, 8, 1300, 200


@final
class CSNN(nn.Module):
    """The network of the example conv_fashion_mnist, which itself cannot be imported without torchvision."""

    def __init__(self, T: int, channels: int) -> None:
        super().__init__()
        self.T, c = T, channels
        self.conv_fc = nn.Sequential(
            layer.Conv2d(1, c, 3, padding=1, bias=False), layer.BatchNorm2d(c), neuron.IFNode(), layer.MaxPool2d(2, 2),
            layer.Conv2d(c, c, 3, padding=1, bias=False), layer.BatchNorm2d(c), neuron.IFNode(), layer.MaxPool2d(2, 2),
            layer.Flatten(), layer.Linear(c * 7 * 7, c * 4 * 4, bias=False), neuron.IFNode(),
            layer.Linear(c * 4 * 4, 10, bias=False), neuron.IFNode(),
        )  # fmt: skip
        functional.set_step_mode(self, step_mode="m")

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_fc(x.unsqueeze(0).expand(self.T, -1, -1, -1, -1)).mean(0)


@final
class Tutorial6(nn.Module):
    """12C5-MP2-64C5-MP2-1024FC10 of snnTorch's tutorial 6; returns the spikes of every step."""

    def __init__(self) -> None:
        super().__init__()
        slope = surrogate.fast_sigmoid(slope=25)
        self.conv1, self.conv2, self.fc1 = nn.Conv2d(1, 12, 5), nn.Conv2d(12, 64, 5), nn.Linear(64 * 4 * 4, 10)
        self.lif1, self.lif2, self.lif3 = (snntorch.Leaky(beta=0.5, spike_grad=slope) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = self.lif1.init_leaky(), self.lif2.init_leaky(), self.lif3.init_leaky()
        spikes = []
        for _ in range(STEPS):
            s, a = self.lif1(F.max_pool2d(self.conv1(x), 2), a)
            s, b = self.lif2(F.max_pool2d(self.conv2(s), 2), b)
            s, c = self.lif3(self.fc1(s.flatten(1)), c)
            spikes.append(s)
        return torch.stack(spikes)


@final
class Readme(nn.Module):
    """The network of Norse's README, run for several steps on one image."""

    def __init__(self) -> None:
        super().__init__()
        p = norse.LIFParameters(v_th=torch.tensor(0.3))
        self.body = norse.SequentialState(
            nn.Conv2d(1, 20, 5, 1), norse.LIFCell(p), nn.MaxPool2d(2, 2),
            nn.Conv2d(20, 50, 5, 1), norse.LIFCell(p), nn.MaxPool2d(2, 2),
            nn.Flatten(), nn.Linear(800, 10), norse.LICell(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        state, outputs = None, []
        for _ in range(STEPS):
            output, state = self.body(x, state)
            outputs.append(output)
        return torch.stack(outputs)


def logits(model: nn.Module, x: Tensor) -> Tensor:
    """Mean over time; SpikingJelly's network takes it itself, and is reset here."""
    out = model(x)
    if isinstance(model, CSNN):
        functional.reset_net(model)
        return out
    return out.mean(0)


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of right answers in percent."""
    model.eval()
    with torch.no_grad():
        return 100 * float((torch.cat([logits(model, part) for part in x.split(100)]).argmax(1) == y).float().mean())


def train(model: nn.Module, x: Tensor, y: Tensor, epochs: int, rate: float) -> None:
    """Adam on the cross-entropy of ten times the mean output."""
    optimizer = torch.optim.Adam(model.parameters(), rate)
    for _ in range(epochs):
        model.train()
        for index in torch.randperm(len(x)).split(50):
            loss = F.cross_entropy(10 * logits(model, x[index]), y[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def measured(make: Callable[[], nn.Module], epochs: int, rate: float) -> dict[str, float]:
    """Accuracy of the dense network, of magnitude alone and of the squeezed one, on images that nothing else saw."""
    data = load_digits()
    pixels, y = torch.tensor(data.images).float()[:, None] / 16, torch.tensor(data.target)
    x = F.interpolate(pixels, (28, 28), mode="nearest")
    torch.manual_seed(0)
    model, began = make(), time.process_time()
    order = torch.randperm(len(x))
    own, test = order[:TRAIN], order[TRAIN:]
    train(model, x[own], y[own], epochs, rate)
    trained = time.process_time() - began
    found = {"dense": accuracy(model, x[test], y[test])}
    cut = copy.deepcopy(model)
    sp.prune(cut, "magnitude", SPARSITY)
    found["magnitude"] = accuracy(cut, x[test], y[test])
    began = time.process_time()
    sp.squeeze(model, x[own[:IMAGES]].split(50), SPARSITY)
    return {
        **found,
        "squeezed": accuracy(model, x[test], y[test]),
        "training_seconds": round(trained, 1),
        "seconds": round(time.process_time() - began, 1),
    }


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int, float]] = {
    "SpikingJelly, CSNN": (lambda: CSNN(4, 16), 3, 2e-3),
    "snnTorch, tutorial 6": (Tutorial6, 4, 2e-3),
    "Norse, README": (Readme, 4, 2e-3),
}


def main() -> None:
    torch.set_num_threads(1)
    found = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    for name, (make, epochs, rate) in NETWORKS.items():
        if name not in found:
            found[name] = measured(make, epochs, rate)
            RESULTS.write_text(json.dumps(found, indent=1) + "\n")
        print(name, found[name], flush=True)


if __name__ == "__main__":
    main()
