# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Choosing a sparsity
#
# We take a network that comes trained with the package, and ask how sparse it may be: first layer by layer, then as a
# whole, then with a limit on the loss of accuracy. Nothing is trained here.

# %%
import torch

import spikeprune as sp
from spikeprune.data import batches
from spikeprune.lab.train.pretrained import data_of

torch.set_num_threads(1)
data = data_of("digits")  # normalised as the network wants it
train = list(batches(data, "train", 100))
test = list(batches(data, "test", 100))


@torch.no_grad()
def accuracy(model):
    from spikingjelly.activation_based import functional

    right = 0
    for images, labels in test:
        functional.reset_net(model)
        right += int((model(images).mean(0).argmax(1) == labels).sum())
    functional.reset_net(model)
    return right / sum(len(labels) for _, labels in test)


dense = accuracy(sp.pretrained("digits"))
print(f"dense: {dense:.4f}")

# %% [markdown]
# ## 1. Which layers are fragile?
# One layer at a time is cut by magnitude. We measure on training images: the test images are for the end.

# %%
curves = sp.sensitivity(sp.pretrained("digits"), train[:5], sparsities=(0.5, 0.8, 0.9, 0.95))
print(f"{'layer':<24}" + "".join(f"{s:>8.0%}" for s in (0.5, 0.8, 0.9, 0.95)))
for name, curve in curves.items():
    if name:
        print(f"{name:<24}" + "".join(f"{value:>8.3f}" for value in curve.values()))

# %% [markdown]
# A layer whose accuracy falls first is the one to spare: by `exclude=`, `floor=`, or an allocation such as "lamp".
#
# ## 2. How do cutting, and cutting with re-solving, compare as a whole?
# `sp.squeeze` cuts and solves the remaining weights again. `solve=False` cuts only.

# %%
print("sparsity   cut only   squeezed")
curve = {}
for sparsity in (0.5, 0.7, 0.8, 0.9, 0.95):
    cut, squeezed = sp.pretrained("digits"), sp.pretrained("digits")
    sp.squeeze(cut, train, sparsity, solve=False)
    sp.squeeze(squeezed, train, sparsity)
    curve[sparsity] = accuracy(cut), accuracy(squeezed)
    print(f"{sparsity:>8.0%}   {curve[sparsity][0]:>8.4f}   {curve[sparsity][1]:>8.4f}")

# %% [markdown]
# This network is small (6,032 weights), so it bears less than large ones do. One of 355 test images is 0.0028, so
# differences of a few images mean nothing.
#
# ## 3. The highest sparsity within a limit
# `tolerance` searches it on the calibration images. More images make the limit finer.

# %%
model = sp.pretrained("digits")
found = sp.squeeze(model, train, tolerance=0.02, images=1000)
print(f"sparsity {found.sparsity:.4f}, test accuracy {accuracy(model):.4f} (dense {dense:.4f})")
print(found.table())

# %%
assert curve[0.5][1] > dense - 0.05
assert 0.3 < found.sparsity < 1
