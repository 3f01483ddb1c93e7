"""The fused function against PyTorch: every kind of neuron, reset, surrogate and BatchNorm, computed both ways."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from spikeprune.runtime import native
from spikeprune.runtime.fuse import kernel
from spikeprune.runtime.fuse.kernel import Call, Neuron, Norm, fire, reference, statistics

HARD, SOFT = (0.0, -0.1), (1.0, -0.8)  # reset to -0.1; subtract the threshold 0.8


def lif(reset=HARD, surrogate="atan", **more):
    return Neuron(
        decay=0.6, gain=0.7, offset=0.02, v_threshold=0.8, reset_scale=reset[0], reset_shift=reset[1],
        surrogate=surrogate, alpha=3.0 if surrogate == "clamped-tanh" else 2.0, v_start=0.05, **more,
    )  # fmt: skip


def tensors(T, N, C, space, still=False, seed=0, dtype=torch.float64):
    made = torch.Generator().manual_seed(seed)
    y = torch.randn((1 if still else T) * N, C, *space, generator=made, dtype=dtype) * 2 + 0.5
    weight, bias = torch.randn(2, C, generator=made, dtype=dtype)
    v = torch.randn(N, C, *space, generator=made, dtype=dtype)
    return y, weight + 1, bias, v


def norm_of(y, T, mode, still):
    if mode == "none":
        return None
    if mode == "running":
        return Norm(
            torch.linspace(-1, 1, y.shape[1]).double(), torch.linspace(0.5, 2, y.shape[1]).double(), 1e-5, False
        )
    mean, var = statistics(y, 1 if still else T, mode == "per-step" and not still)
    return Norm(mean, var, 1e-5, True)


def run(function, call, inputs, g_spikes, g_last):
    leaves = [None if t is None else t.detach().clone().requires_grad_() for t in inputs]
    spikes, v = function(leaves[0], call, *leaves[1:])
    torch.autograd.backward([spikes, v], [g_spikes, g_last])
    return spikes.detach(), v.detach(), *[None if t is None else t.grad for t in leaves]


def compare(neuron, mode, T, N, C, space, *, still=False, carried=True, last=False, learns=False, seed=0, pool=""):
    """The kernel's spikes, potential and gradients equal those of autograd through plain PyTorch, in float64."""
    y, weight, bias, v = tensors(T, N, C, space, still, seed)
    if last:
        y, v = (t.contiguous(memory_format=torch.channels_last) for t in (y, v))
    call = Call(T, neuron, norm_of(y, T, mode, still), still, pool=pool)
    leak = torch.tensor(0.4, dtype=torch.float64) if learns else None
    affine = (None, None) if mode == "none" else (weight, bias)
    inputs = (y, *affine, v if carried else None, leak)
    behind = [size // 2 for size in space] if pool else space
    g = torch.randn(T * N, C, *behind, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 1))
    g_last = torch.ones_like(v)
    ours = run(fire, call, inputs, g, g_last)
    theirs = run(reference, call, inputs, g, g_last)
    assert_close(ours, theirs, rtol=1e-9, atol=1e-10)
    assert ours[0].unique().tolist() == [0.0, 1.0] or neuron.smooth or pool == "avg" or ours[0].numel() < 50


@pytest.fixture(params=["kernel", "without a compiler"])
def way(request, monkeypatch):
    if request.param == "kernel":
        if native.library("fuse") is None:
            pytest.skip("no C++ compiler")
    else:
        monkeypatch.setattr(native, "library", lambda name: None)
    return request.param


@pytest.mark.parametrize("reset", [HARD, SOFT], ids=["hard", "soft"])
@pytest.mark.parametrize("surrogate", kernel.SURROGATES)
@pytest.mark.parametrize("detach", [False, True])
def test_every_neuron(way, reset, surrogate, detach):
    compare(lif(reset, surrogate, detach_reset=detach), "batch", 3, 2, 5, (3, 7))
    compare(lif(reset, surrogate, detach_reset=detach, strict=True), "batch", 3, 2, 5, (9, 9))


@pytest.mark.parametrize("mode", ["none", "running", "batch", "per-step"])
@pytest.mark.parametrize("still", [False, True])
@pytest.mark.parametrize("last", [False, True])
def test_every_normalisation(way, mode, still, last):
    compare(lif(), mode, 4, 3, 70, (3, 3), still=still, last=last)
    compare(lif(), mode, 4, 3, 3, (9, 8), still=still, last=last, carried=False)


def test_a_neuron_that_learns_its_leak(way):
    for reset, mode in itertools.product((HARD, SOFT), ("batch", "per-step")):
        compare(lif(reset, slopes=(-1.0, 1.0, 0.05)), mode, 4, 3, 5, (8, 9), learns=True)
        compare(lif(reset, slopes=(-1.0, 0.0, 0.05)), mode, 4, 3, 5, (), learns=True, carried=False)


@pytest.mark.parametrize("pool", ["max", "avg"])
@pytest.mark.parametrize("mode", ["none", "batch", "per-step"])
@pytest.mark.parametrize("still", [False, True])
def test_pooling_behind_the_neuron(way, pool, mode, still):
    """Autograd through torch's own pooling decides where the gradient of a window goes, ties and all."""
    compare(lif(), mode, 4, 3, 70, (4, 6), still=still, last=True, pool=pool)
    compare(lif(SOFT), mode, 3, 2, 5, (2, 2), still=still, last=True, pool=pool, carried=False)


def test_the_first_spike_of_a_window_gets_its_gradient(way):
    """Worked by hand: IF, threshold 1, one step, slope 1 / (1 + (pi u)^2); torch gives a silent window to its first."""
    y = torch.tensor([[0.5, 1.0, 0.0, 0.5], [1.0, 1.5, 0.0, 0.0]], dtype=torch.float64).view(1, 1, 2, 4)
    y = y.contiguous(memory_format=torch.channels_last).requires_grad_()
    spikes, _ = fire(y, Call(1, Neuron(1, 1, 0, 1.0, 0, 0, "atan", 2.0), pool="max"))
    assert spikes.flatten().tolist() == [1.0, 0.0]
    (g,) = torch.autograd.grad(spikes, y, torch.tensor([[[[3.0, 5.0]]]], dtype=torch.float64))
    # left: the first that fires is at row 0, column 1, where u = 0; right: none does, row 0, column 2 with u = -1
    want = torch.tensor([0, 3.0, 5.0 / (1 + torch.pi**2), 0, 0, 0, 0, 0], dtype=torch.float64)
    assert_close(g.flatten(), want, rtol=1e-12, atol=0)


@settings(max_examples=15, deadline=None)
@given(
    T=st.integers(1, 6), N=st.integers(1, 4), C=st.integers(1, 130), H=st.integers(1, 5), W=st.integers(1, 5),
    pool=st.sampled_from(["max", "avg"]), still=st.booleans(), soft=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_pooling_of_any_shape(T, N, C, H, W, pool, still, soft, seed):
    neuron = lif(SOFT if soft else HARD)
    compare(neuron, "batch", T, N, C, (2 * H, 2 * W), still=still and T > 1, last=True, seed=seed, pool=pool)


@settings(max_examples=25, deadline=None)
@given(
    T=st.integers(1, 8), N=st.integers(1, 5), C=st.integers(1, 130), H=st.integers(1, 11), W=st.integers(1, 11),
    mode=st.sampled_from(["none", "running", "batch", "per-step"]), last=st.booleans(), still=st.booleans(),
    soft=st.booleans(), detach=st.booleans(), surrogate=st.sampled_from(kernel.SURROGATES), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_shape(T, N, C, H, W, mode, last, still, soft, detach, surrogate, seed):
    if N * H * W < 2:
        H = 2
    neuron = lif(SOFT if soft else HARD, surrogate, detach_reset=detach)
    compare(neuron, mode, T, N, C, (H, W), still=still and T > 1, last=last, seed=seed)


@pytest.mark.parametrize("surrogate", kernel.SURROGATES)
@pytest.mark.parametrize("reset", [HARD, SOFT], ids=["hard", "soft"])
def test_finite_differences_with_the_smooth_curve(way, surrogate, reset):
    """A spike has no derivative; with the surrogate's curve in its place the whole backward can be checked."""
    y, weight, bias, v = tensors(3, 2, 2, (2,))
    neuron = lif(reset, surrogate, smooth=True)

    def function(y, weight, bias, v):
        return fire(y, Call(3, neuron, norm_of(y, 3, "batch", False)), weight, bias, v)

    inputs = tuple(t.requires_grad_() for t in (y * 0.3, weight, bias, v * 0.3))
    assert torch.autograd.gradcheck(function, inputs, eps=1e-6, atol=1e-6)


def test_statistics_of_a_mean_far_from_zero(way):
    y = torch.randn(6, 3, 9, 9) * 0.01 + 100
    for per_step in (False, True):
        mean, var = statistics(y, 2, per_step)
        groups = y.double().unflatten(0, (2, 3)) if per_step else y.double().unsqueeze(0)
        want_var, want_mean = torch.var_mean(groups, (1, 3, 4), correction=0)
        assert_close(mean.view_as(want_mean), want_mean, rtol=1e-9, atol=0)
        assert_close(var.view_as(want_var), want_var, rtol=1e-4, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("surrogate", kernel.SURROGATES)
def test_low_precision_is_near_float64(way, dtype, surrogate):
    y, weight, bias, _ = tensors(4, 3, 20, (9, 9), dtype=torch.float32)
    y = y.to(dtype)
    g = torch.randn(y.shape).to(dtype)
    results = []
    for wide, t in ((torch.float32, y), (torch.float64, y.double())):
        call = Call(4, lif(surrogate=surrogate), norm_of(t, 4, "batch", False))
        inputs = (t, weight.to(wide), bias.to(wide), None, None)
        results.append(run(fire, call, inputs, g.to(t.dtype), torch.zeros_like(t[:3])))
    low, high = results
    assert low[0].dtype == dtype
    assert (low[0].double() != high[0]).double().mean() < 0.01
    tolerance = 0.05 if dtype == torch.bfloat16 else 2e-3
    for ours, exact in zip(low[2:5], high[2:5], strict=True):
        assert (ours.double() - exact).norm() < tolerance * exact.norm()


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("space", [(3, 3), (17, 17)])
def test_the_number_of_threads_changes_no_bit(last, space):
    y, weight, bias, _ = tensors(4, 9, 130, space, dtype=torch.float32)
    y = y.contiguous(memory_format=torch.channels_last) if last else y
    g = torch.randn(y.shape)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            call = Call(4, lif(), norm_of(y, 4, "batch", False))
            found.append(run(fire, call, (y, weight, bias, None, None), g, torch.zeros_like(y[:9])))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert a is None or torch.equal(a, b)


def test_criticality_is_the_largest_mean_slope(way):
    """Worked by hand: T = 2, IF, threshold 1, arctangent of alpha 2 with slope 1 / (1 + (pi u)^2)."""
    y = torch.tensor([[[0.5, 1.0]], [[0.5, 0.0]]], dtype=torch.float64)  # two steps, one sample, one channel, 2 places
    near = torch.zeros(1, 1)
    fire(y, Call(2, Neuron(1, 1, 0, 1.0, 0, 0, "atan", 2.0), criticality=near))
    # place 0: h = 0.5, 1.0 -> u = -0.5, 0; place 1: h = 1.0 (fires, back to 0), 0.0 -> u = 0, -1
    pi2 = torch.pi**2
    assert_close(near.item(), max((1 / (1 + pi2 / 4) + 1) / 2, (1 + 1 / (1 + pi2)) / 2), rtol=1e-6, atol=0)


def test_there_is_no_second_derivative(way):
    y = torch.randn(4, 3, requires_grad=True)
    spikes, _ = fire(y, Call(2, lif()))
    (g,) = torch.autograd.grad((spikes * spikes).sum(), y, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        g.sum().backward()
