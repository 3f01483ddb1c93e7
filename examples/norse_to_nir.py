"""Norse with a loop of your own: pruned to 95 %, squeezed, resumed, exported to NIR and read back by Norse.

python examples/norse_to_nir.py
"""

import nir
import norse.torch as norse
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

import spikeprune as sp


class Net(nn.Module):
    """[T, N, 64] -> spikes [T, N, 10]. NIR counts steps of 0.1 ms, so a quarter of the potential leaks at each."""

    def __init__(self):
        super().__init__()
        p = norse.LIFBoxParameters(tau_mem_inv=torch.tensor(250.0), method="super", alpha=torch.tensor(10.0))
        self.net = norse.SequentialState(
            nn.Linear(64, 128), norse.LIFBoxCell(p), nn.Linear(128, 10), norse.LIFBoxCell(p)
        )

    def forward(self, x):
        state, out = None, []
        for step in x:
            spikes, state = self.net(step, state)
            out.append(spikes)
        return torch.stack(out)


def train(model, optimizer, x, y, steps):
    for _ in range(steps):
        batch = torch.randint(len(y), (128,))
        optimizer.zero_grad()
        cross_entropy(model(x[:, batch]).mean(0) * 8, y[batch]).backward()
        optimizer.step()


def read_back(path, x):
    """The spikes that Norse computes from the file, step by step."""
    model, state, out = norse.from_nir(nir.read(path), dt=1e-4), None, []
    for step in x:
        spikes, state = model(step, state)
        out.append(spikes)
    return torch.stack(out)


def main(folder="."):
    torch.manual_seed(0)
    digits = load_digits()
    x, y = torch.tensor(digits.data, dtype=torch.float32).div(16).expand(8, -1, -1), torch.tensor(digits.target)
    model = Net()
    with torch.no_grad():
        for layer in (model.net[0], model.net[2]):
            layer.weight.mul_(4)  # its neurons take a quarter of their current
    train(model, torch.optim.Adam(model.parameters(), 2e-3), x[:, :1437], y[:1437], 400)
    sp.squeeze(model.eval(), [x[:, :200]], 0.95)  # no labels, no training; in place

    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    pruner = sp.hold(model).attach(optimizer)  # these zeros stay
    train(model.train(), optimizer, x[:, :1437], y[:1437], 60)
    saved = model.state_dict(), optimizer.state_dict(), pruner.state_dict()
    model = Net()  # another process goes on here
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    model.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    pruner = sp.hold(model).attach(optimizer)
    pruner.load_state_dict(saved[2])
    train(model, optimizer, x[:, :1437], y[:1437], 60)
    pruner.finish()

    path = sp.export_nir(model.eval(), f"{folder}/net.nir", x[:, :4])
    with torch.no_grad():
        spikes, again = model(x[:, 1437:]), read_back(path, x[:, 1437:])
    accuracy = (spikes.sum(0).argmax(1) == y[1437:]).float().mean().item()
    print(f"accuracy {accuracy:.3f} at sparsity {pruner.sparsity:.4f}; {int((spikes != again).sum())} spikes differ")
    return accuracy, pruner.sparsity, int((spikes != again).sum()), int(spikes.sum())


if __name__ == "__main__":
    main()
