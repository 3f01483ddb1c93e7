# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Your own SpikingJelly model, pruned while it trains
#
# We train a small network on scikit-learn's handwritten digits twice, dense and pruned to 90 %, with the same loop.
# Only four lines are spikeprune's. Then we count what is left, and run it faster.

# %%
import time

import torch
from sklearn.datasets import load_digits
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn
from torch.nn.functional import cross_entropy

import spikeprune as sp

torch.set_num_threads(1)
digits = load_digits()
x = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16  # [1797, 1, 8, 8]
y = torch.tensor(digits.target)
train, test = (x[:1437], y[:1437]), (x[1437:], y[1437:])
T = 4


# %% [markdown]
# ## The model: yours, as you would write it anyway


# %%
def build():
    torch.manual_seed(0)
    net = nn.Sequential(
        layer.Conv2d(1, 16, 3, padding=1, bias=False),
        layer.BatchNorm2d(16),
        neuron.LIFNode(surrogate_function=surrogate.ATan()),
        layer.Conv2d(16, 32, 3, padding=1, bias=False),
        layer.BatchNorm2d(32),
        neuron.LIFNode(surrogate_function=surrogate.ATan()),
        layer.AvgPool2d(2),
        layer.Flatten(),
        layer.Linear(32 * 16, 10),
    )
    functional.set_step_mode(net, "m")
    return net


def forward(model, images):
    """[N, 1, 8, 8] -> logits [N, 10]: the image is shown T times, and the output averaged."""
    functional.reset_net(model)
    return model(images.expand(T, *images.shape)).mean(0)


# %% [markdown]
# ## The loop: yours too
# `sparsity=None` trains the dense network.


# %%
def fit(model, epochs=12, sparsity=None):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    steps = epochs * (len(train[0]) // 64)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    pruner = None
    if sparsity is not None:
        schedule = sp.Cubic(to=sparsity, begin=0, end=steps * 2 // 3, every=steps // 12)
        pruner = sp.Pruner(model, "magnitude", schedule)
        pruner.attach(optimizer)
    generator = torch.Generator().manual_seed(0)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(train[0]), generator=generator).split(64)[: len(train[0]) // 64]:
            loss = cross_entropy(forward(model, train[0][batch]), train[1][batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            cosine.step()
    if pruner is not None:
        pruner.finish()
    return pruner


@torch.no_grad()
def accuracy(model):
    model.eval()
    return (forward(model, test[0]).argmax(1) == test[1]).float().mean().item()


dense, pruned = build(), build()
fit(dense)
pruner = fit(pruned, sparsity=0.9)
print(f"dense {accuracy(dense):.4f}, pruned {accuracy(pruned):.4f} at sparsity {pruner.sparsity:.4f}")

# %% [markdown]
# One seed says little. `spikeprune sweep` repeats such a comparison over seeds and gives intervals.
#
# ## What is left

# %%
print(pruner.table())
for r in pruner.rounds:
    print(f"step {r.step}: kept {r.kept:,}")

# %%
batches = [(test[0][:64].expand(T, 64, 1, 8, 8), test[1][:64])]
counts = sp.count(pruned, batches, pruner.masks)
print(f"multiplies (MACs): {counts.dense.macs:,.0f} -> {counts.pruned.macs:,.0f} an image")
print(f"operations that really happen (SynOps): {counts.dense.synops:,.0f} -> {counts.pruned.synops:,.0f}")

# %% [markdown]
# ## Run it
# `sp.compile` makes use of the zeros and gives the same spikes.

# %%
functional.reset_net(pruned)
images = batches[0][0]
fast = sp.compile(pruned, images)
with torch.no_grad():
    expected = pruned(images)
    functional.reset_net(pruned)
torch.testing.assert_close(fast(images), expected, rtol=1e-3, atol=1e-3)


def seconds(run):
    best = 1e9
    for _ in range(5):
        begun = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - begun)
    return best


with torch.no_grad():
    ours = seconds(lambda: fast(images))
    theirs = seconds(lambda: (functional.reset_net(pruned), pruned(images)))
print(f"SpikingJelly {theirs * 1000:.1f} ms, compiled {ours * 1000:.1f} ms for 64 images")

# %%
assert accuracy(pruned) > 0.85
assert abs(pruner.sparsity - 0.9) < 1e-3
