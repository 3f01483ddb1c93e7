"""Convolutions of spikes: the sums over those that fired equal the dense convolution and its gradients."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn
from torch.testing import assert_close

from spikeprune.runtime import native
from spikeprune.runtime.fuse import events, fuse
from spikeprune.runtime.fuse.bits import SpikeStore
from spikeprune.zoo import build

pytestmark = pytest.mark.skipif(native.library("fuse") is None, reason="no C++ compiler")


def spikes(shape, share, dtype=torch.float64, last=False, seed=0):
    made = torch.Generator().manual_seed(seed)
    x = (torch.rand(shape, generator=made) < share).to(dtype)
    return x.contiguous(memory_format=torch.channels_last) if last else x


def run(module, x, seen=True):
    """Output and gradients; `seen`: as the spikes of a fused neuron."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    module.zero_grad()
    store = SpikeStore()
    store.add(x)
    y = events.convolution(module, x, store) if seen else module(x)
    assert y is not None
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype))
    return y.detach(), x.grad, {n: p.grad.clone() for n, p in module.named_parameters()}


@settings(max_examples=30, deadline=None)
@given(
    M=st.integers(1, 7), inputs=st.integers(1, 70), outputs=st.integers(1, 70), H=st.integers(1, 12),
    W=st.integers(1, 12), kernel=st.sampled_from([(1, 1), (3, 3), (5, 5), (1, 3), (3, 2)]),
    share=st.sampled_from([0.0, 0.05, 0.25, 0.8]), bias=st.booleans(), last=st.booleans(), last_weight=st.booleans(),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_any_convolution(M, inputs, outputs, H, W, kernel, share, bias, last, last_weight, seed):
    torch.manual_seed(seed)
    module = nn.Conv2d(inputs, outputs, kernel, padding=tuple(k // 2 for k in kernel), bias=bias).double()
    if last_weight:
        module.to(memory_format=torch.channels_last)
    x = spikes((M, inputs, H, W), share, last=last, seed=seed)
    before = x.clone()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("spikeprune.runtime.fuse.bits._LEAST", 1)
        ours = run(module, x)
    assert_close(ours, run(module, x, seen=False), rtol=1e-10, atol=1e-10)
    assert torch.equal(x, before)


def test_a_convolution_worked_by_hand():
    """Two spikes at columns 1 and 2 of a row of four, kernel (a, b, c) = (1, 10, 100), padding 1."""
    module = nn.Conv2d(1, 1, (1, 3), padding=(0, 1), bias=False).double()
    nn.init.constant_(module.weight, 1)
    module.weight.data[0, 0, 0] = torch.tensor([1.0, 10.0, 100.0])
    x = torch.tensor([0.0, 1.0, 1.0, 0.0], dtype=torch.float64).view(1, 1, 1, 4).repeat(2000, 1, 1, 1).requires_grad_()
    store = SpikeStore()
    store.add(x)
    y = events.convolution(module, x, store)
    assert y[0].flatten().tolist() == [100.0, 110.0, 11.0, 1.0]  # y[w] = x[w-1] + 10 x[w] + 100 x[w+1]
    g = torch.zeros_like(y)
    g[0] = torch.tensor([1.0, 2.0, 4.0, 8.0])
    y.backward(g)
    # of a: sum of g[w] x[w-1] = 4 + 8; of b: g[w] x[w] = 2 + 4; of c: g[w] x[w+1] = 1 + 2
    assert module.weight.grad.flatten().tolist() == [12.0, 6.0, 3.0]
    # of x[w]: g[w+1] + 10 g[w] + 100 g[w-1]
    assert x.grad[0].flatten().tolist() == [12.0, 124.0, 248.0, 480.0]


@pytest.mark.parametrize("last", [False, True])
def test_float32_and_the_number_of_threads(last):
    """The same bits for every number of threads; close to float64."""
    torch.manual_seed(0)
    module = nn.Conv2d(40, 130, 3, padding=1)
    x = spikes((9, 40, 12, 12), 0.2, torch.float32, last)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            y, _, grads = run(module, x)
            found.append((y, grads["weight"]))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))
    y, _, grads = run(copy.deepcopy(module).double(), x.double())
    assert_close(found[0], (y.float(), grads["weight"].float()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv2d(4, 4, 3, stride=2, padding=1),
        nn.Conv2d(4, 4, 3, dilation=2),
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(4, 4, 1, padding=1),
    ],
)
def test_unusual_layers_stay_dense(module):
    x = spikes((40, 4, 8, 8), 0.2, torch.float32)
    store = SpikeStore()
    store.add(x)
    assert events.convolution(module, x, store) is None


def test_only_spikes_are_taken_for_spikes():
    module, x = nn.Conv2d(4, 4, 3), spikes((40, 4, 8, 8), 0.2, torch.float32)
    store = SpikeStore()
    assert events.convolution(module, x, store) is None
    store.add(x)
    assert events.convolution(module, x, store) is not None
    assert events.convolution(module, x[:20], store) is None
    x.mul_(2)
    assert events.convolution(module, x, store) is None
    with torch.no_grad():
        assert events.convolution(module, x, store) is None


def test_networks_use_it(monkeypatch):
    """Every convolution but the first reads spikes, in a multi-step layer and inside a container."""
    calls = []

    def spy(module, x, store):
        y = convolution(module, x, store)
        calls.append(y is not None)
        return y

    convolution = events.convolution
    monkeypatch.setattr("spikeprune.runtime.fuse.forwards.convolution", spy)
    net = fuse(build("fashion-conv-large", T=3, size=16))
    net(torch.rand(4, 1, 16, 16))
    assert calls == [False, True, True, True]
    calls.clear()
    inside = layer.SeqToANNContainer(nn.Conv2d(4, 4, 3, padding=1))
    net = fuse(nn.Sequential(layer.Conv2d(1, 4, 3, step_mode="m"), neuron.IFNode(step_mode="m"), inside))
    net(torch.rand(3, 4, 1, 16, 16))
    assert calls == [False, True]
    functional.reset_net(net)
