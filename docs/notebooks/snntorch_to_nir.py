# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # From snnTorch to NIR
#
# We train a small snnTorch network on handwritten digits, prune it to 80 %, and write it as a NIR graph, which
# neuromorphic simulators and chips read. Then we read the file back and check that the zeros are in it.

# %%
import nir
import snntorch as snn
import torch
from sklearn.datasets import load_digits
from snntorch import surrogate, utils
from snntorch.export_nir import export_to_nir
from torch import nn
from torch.nn.functional import cross_entropy

import spikeprune as sp

torch.set_num_threads(1)
torch.manual_seed(0)
digits = load_digits()
x = torch.tensor(digits.data, dtype=torch.float32) / 16  # [1797, 64]
y = torch.tensor(digits.target)
train, test = (x[:1437], y[:1437]), (x[1437:], y[1437:])
T = 6

# %% [markdown]
# ## The network
# `init_hidden=True` keeps the membrane potential in the neuron, so that the layers form a plain sequence. NIR wants
# parameters of the layer's shape, so `beta` and `threshold` have one entry for each neuron.

# %%
gradient = surrogate.fast_sigmoid(slope=25)


def leaky(neurons):
    beta, threshold = torch.full((neurons,), 0.9), torch.ones(neurons)
    return snn.Leaky(beta=beta, threshold=threshold, spike_grad=gradient, init_hidden=True)


model = nn.Sequential(nn.Linear(64, 128), leaky(128), nn.Linear(128, 10), leaky(10))


def spikes_of(images):
    """[N, 64] -> number of output spikes over T steps, [N, 10]."""
    utils.reset(model)
    return sum(model(images) for _ in range(T))


@torch.no_grad()
def accuracy():
    return (spikes_of(test[0]).argmax(1) == test[1]).float().mean().item()


# %% [markdown]
# ## Train and prune in one loop

# %%
epochs, size = 25, 64
steps = epochs * (len(train[0]) // size)
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
pruner = sp.Pruner(model, "magnitude", sp.Cubic(to=0.8, begin=steps // 5, end=steps * 4 // 5, every=steps // 20))
pruner.attach(optimizer)
for _ in range(epochs):
    for batch in torch.randperm(len(train[0])).split(size)[: len(train[0]) // size]:
        loss = cross_entropy(spikes_of(train[0][batch]), train[1][batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
pruner.finish()
print(f"accuracy {accuracy():.4f} at sparsity {pruner.sparsity:.4f}")

# %% [markdown]
# ## Export
# The pruned model is an ordinary snnTorch model, so snnTorch's own export takes it.

# %%
utils.reset(model)
graph = export_to_nir(model, test[0][:1], ignore_dims=[0])  # dimension 0 is the batch
nir.write("pruned.nir", graph)
print({name: type(node).__name__ for name, node in graph.nodes.items()})

# %% [markdown]
# ## Read back

# %%
again = nir.read("pruned.nir")
weights = [node.weight for node in again.nodes.values() if hasattr(node, "weight")]
zeros = sum(int((w == 0).sum()) for w in weights)
total = sum(w.size for w in weights)
print(f"{zeros:,} of {total:,} weights are 0 in the file: {zeros / total:.4f}")

# %%
assert zeros == pruner.prunable - pruner.alive
assert accuracy() > 0.75
