"""snnTorch with a loop of your own: pruned to 80 %, continued, squeezed to 95 %, exported to NIR, read back.

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
    """[T, N, 64] -> spikes [T, N, 10]. snnTorch's reader of NIR knows no reset but the one to zero."""

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


def made(steps):
    """A network, its optimizer and its pruner, as a program makes them when it starts or continues."""
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    schedule = sp.Cubic(to=0.8, begin=steps // 4, end=steps * 3 // 4, every=steps // 10)
    return model, optimizer, sp.Pruner(model, sp.Criticality(regrow=0.2, grace=True), schedule).attach(optimizer)


def read_back(path, x):
    """The spikes that snnTorch computes from the file, step by step."""
    model, state, out = import_from_nir(nir.read(path)), None, []
    for step in x:
        spikes, state = model(step, state)
        out.append(spikes)
    return torch.stack(out)


def main(folder=".", steps=400):
    torch.manual_seed(0)
    digits = load_digits()
    x, y = torch.tensor(digits.data, dtype=torch.float32).div(16).expand(8, -1, -1), torch.tensor(digits.target)
    parts = model, optimizer, pruner = made(steps)
    for step in range(steps):
        if step == steps // 2:  # what another process would load and continue
            saved = [part.state_dict() for part in parts]
            parts = model, optimizer, pruner = made(steps)
            for part, state in zip(parts, saved, strict=True):
                part.load_state_dict(state)
        batch = torch.randint(1437, (128,))
        optimizer.zero_grad()
        cross_entropy(model(x[:, batch]).mean(0) * 8, y[batch]).backward()
        optimizer.step()
    pruner.finish()
    masks = sp.squeeze(model.eval(), [x[:, :500]], 0.95).masks  # no labels, no training; it changes the model

    path = sp.export_nir(model, f"{folder}/net.nir", x[:, :4])
    with torch.no_grad():
        spikes, again = model(x[:, 1437:]), read_back(path, x[:, 1437:])
    accuracy = (spikes.sum(0).argmax(1) == y[1437:]).float().mean().item()
    differ, zeros = int((spikes != again).sum()), sum(int((~mask).sum()) for mask in masks.values())
    print(f"accuracy {accuracy:.3f}; {zeros} of 9472 weights are 0; {differ} of {int(spikes.sum())} spikes differ")
    return accuracy, zeros, differ, int(spikes.sum())


if __name__ == "__main__":
    main()
