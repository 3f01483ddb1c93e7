"""Between mask updates the Pruner never waits for a GPU: counted on the CPU, by what would make the host wait."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import spikeprune as sp
from nets import conv_net, sgd, train

# `.item()`, `bool(t)`, `int(t)`; indices whose number depends on values; comparisons that return a Python bool.
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique", "_unique2")


class Waits(TorchDispatchMode):
    """Counts operations whose result the host must know before it goes on."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in WAITS or (name == "index" and any(getattr(i, "dtype", None) is torch.bool for i in args[1])):
            self.found.append(name)
        return function(*args, **(kwargs or {}))


def waits(step, method, optimizer_of, attach):
    """What one step waits for, after `step` - 1 others."""
    model = conv_net()
    optimizer = optimizer_of(model)
    if attach:
        pruner = sp.Pruner(model, method, sp.Cubic(to=0.8, begin=0, end=12, every=6))
        pruner.attach(optimizer)
    train(model, optimizer, step - 1)
    with Waits() as counted:
        train(model, optimizer, 1, first=step)
    return counted.found


def adamw(model):
    return torch.optim.AdamW(model.parameters(), 0.01)


@pytest.mark.parametrize("optimizer_of", [sgd, adamw])
@pytest.mark.parametrize("method", ["magnitude", "criticality", "gradient", "random"])
@pytest.mark.parametrize("step", [3, 8])
def test_a_step_without_a_mask_update_waits_for_nothing(step, method, optimizer_of):
    assert waits(step, method, optimizer_of, attach=True) == waits(step, method, optimizer_of, attach=False)


def test_a_mask_update_is_seen_to_wait():
    """The counter counts: the number of weights to keep is looked up in a mask update."""
    assert len(waits(6, "magnitude", sgd, attach=True)) > len(waits(6, "magnitude", sgd, attach=False))
