"""Norse with a loop of your own: pruned to 80 %, continued, squeezed to 95 %, exported to NIR, read back.

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
    """[T, N, 64] -> spikes [T, N, 10]. The neurons take a quarter of their input current."""

    def __init__(self):
        super().__init__()
        leak, threshold = torch.tensor(250.0), torch.tensor(0.25)
        p = norse.LIFBoxParameters(leak, v_th=threshold, method="super", alpha=torch.tensor(10.0))
        self.net = norse.SequentialState(
            nn.Linear(64, 128), norse.LIFBoxCell(p), nn.Linear(128, 10), norse.LIFBoxCell(p)
        )

    def forward(self, x):
        state, out = None, []
        for step in x:
            spikes, state = self.net(step, state)
            out.append(spikes)
        return torch.stack(out)


def made(steps):
    """A network, its optimizer and its pruner, as a program makes them when it starts or continues."""
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    schedule = sp.Cubic(to=0.8, begin=steps // 4, end=steps * 3 // 4, every=steps // 10)
    return model, optimizer, sp.Pruner(model, sp.Criticality(regrow=0.2, grace=True), schedule).attach(optimizer)


def read_back(path, x):
    """The spikes that Norse computes from the file, step by step."""
    model, state, out = norse.from_nir(nir.read(path), dt=1e-4), None, []
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
