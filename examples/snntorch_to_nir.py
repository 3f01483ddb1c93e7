"""snnTorch with a loop of your own: pruned to 95 %, squeezed, resumed, exported to NIR and read back by snnTorch.

python examples/snntorch_to_nir.py
"""

import nir
import snntorch as snn
import torch
from sklearn.datasets import load_digits
from snntorch.import_nir import import_from_nir
from torch import nn
from torch.nn.functional import cross_entropy

import spikeprune as sp


class Net(nn.Module):
    """[T, N, 64] -> spikes [T, N, 10]. snnTorch's reader of NIR knows the reset to zero alone."""

    def __init__(self):
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(64, 128), snn.Leaky(beta=0.8, reset_mechanism="zero")
        self.fc2, self.lif2 = nn.Linear(128, 10), snn.Leaky(beta=0.8, reset_mechanism="zero")

    def forward(self, x):
        m1, m2, out = self.lif1.reset_mem(), self.lif2.reset_mem(), []
        for step in x:
            s, m1 = self.lif1(self.fc1(step), m1)
            s, m2 = self.lif2(self.fc2(s), m2)
            out.append(s)
        return torch.stack(out)


def train(model, optimizer, x, y, steps):
    for _ in range(steps):
        batch = torch.randint(len(y), (128,))
        optimizer.zero_grad()
        cross_entropy(model(x[:, batch]).mean(0) * 8, y[batch]).backward()
        optimizer.step()


def read_back(path, x):
    """The spikes that snnTorch computes from the file, step by step."""
    model, state, out = import_from_nir(nir.read(path)), None, []
    for step in x:
        spikes, state = model(step, state)
        out.append(spikes)
    return torch.stack(out)


def main(folder="."):
    torch.manual_seed(0)
    digits = load_digits()
    x, y = torch.tensor(digits.data, dtype=torch.float32).div(16).expand(8, -1, -1), torch.tensor(digits.target)
    model = Net()
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
