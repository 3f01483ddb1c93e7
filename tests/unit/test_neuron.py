"""The integrate-and-fire step: resets, strictness, gradients. Traces by hand: tests/golden/test_criticality.py."""

import torch
from spikingjelly.activation_based import surrogate
from torch.testing import assert_close

from spikeprune.core.neuron import lif_step

ATAN = surrogate.ATan(alpha=2.0)


def step(x, v, **keywords):
    settings = {"decay": 0.5, "gain": 1.0, "v_threshold": 1.0, "v_reset": 0.0, "spike_function": ATAN} | keywords
    return lif_step(x, v, **settings)


def test_hard_and_soft_reset():
    x = torch.tensor([0.5, 1.0, 3.0])
    spike, v_pre, v = step(x, 0.2)
    assert_close(v_pre, x + 0.1)
    assert spike.tolist() == [0, 1, 1]
    assert_close(v, torch.tensor([0.6, 0.0, 0.0]))
    _, _, v = step(x, 0.2, v_reset=None)
    assert_close(v, torch.tensor([0.6, 0.1, 2.1]))


def test_leak_goes_towards_v_rest():
    _, v_pre, _ = step(torch.zeros(1), 0.0, v_rest=-0.5)
    assert_close(v_pre, torch.tensor([-0.25]))  # half way from 0 to -.5


def test_per_channel_settings_broadcast():
    x = torch.ones(2, 3, 4)
    threshold = torch.tensor([0.5, 1.0, 2.0]).view(1, 3, 1)
    spike, _, _ = step(x, torch.zeros_like(x), v_threshold=threshold)
    assert spike.mean((0, 2)).tolist() == [1.0, 1.0, 0.0]


def test_detached_reset_cuts_the_gradient_through_the_reset():
    def slope(detach):
        x = torch.tensor([1.5], requires_grad=True)
        _, _, v = step(x, 0.0, detach_reset=detach)
        return torch.autograd.grad(v.sum(), x)[0].item()

    # v = (1 - s) v_pre: with s cut off, dv/dx = 1 - s = 0; else also -v_pre s'(.5) = -1.5 / (1 + (.5 pi)^2)
    assert slope(True) == 0.0
    assert abs(slope(False) + 1.5 / (1 + (0.5 * torch.pi) ** 2)) < 1e-6
