"""Training over the weights alive alone: the results of masked dense training, layer by layer and step by step."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spikingjelly.activation_based import functional, layer
from torch import nn
from torch.testing import assert_close

from spikeprune.core.errors import InvalidValue
from spikeprune.runtime import native
from spikeprune.runtime.fuse import fuse
from spikeprune.runtime.sparse_train import MOST_ALIVE, densify, sparse_finetune, sparsify
from spikeprune.zoo import build

pytestmark = pytest.mark.skipif(native.library("sparse_train") is None, reason="no C++ compiler")


def masked(model, alive=0.05, seed=0):
    """Random masks with at least one weight alive, applied to the model's weights."""
    made = torch.Generator().manual_seed(seed)
    masks = {}
    for name, parameter in model.named_parameters():
        if parameter.dim() in (2, 4):
            mask = torch.rand(parameter.shape, generator=made) < alive
            mask.view(-1)[0] = True
            masks[name] = mask
            parameter.data.mul_(mask)
    return masks


def gradients(model, x, masks):
    model.zero_grad()
    x = x.clone().requires_grad_()
    out = model(x)
    (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    kept = {n: p.grad * masks[n] if n in masks else p.grad for n, p in model.named_parameters()}
    raw = {n: p.grad for n, p in model.named_parameters()}
    return out.detach(), x.grad, kept, raw


def assert_same(model, x, masks, exact=False):
    """`exact`: against double precision, as PyTorch's own sums in float32 can be off by more than the tolerance."""
    oracle = copy.deepcopy(model).double() if exact else model
    want = gradients(oracle, x.double() if exact else x, masks)[:3]
    with sparse_finetune(model, masks) as report:
        assert all(row.sparse for row in report)
        out, g_x, kept, raw = gradients(model, x, masks)
    assert_close((out, g_x, kept), want, rtol=1e-4, atol=1e-4, check_dtype=not exact)
    for name, mask in masks.items():
        assert not raw[name][~mask].any()


@settings(max_examples=20, deadline=None)
@given(
    M=st.integers(1, 40), inputs=st.integers(1, 9), outputs=st.integers(1, 9), H=st.integers(1, 9),
    W=st.integers(1, 11),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 5)), pads=st.tuples(st.integers(0, 2), st.integers(0, 4)),
    bias=st.booleans(), last=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_convolutions_of_any_shape(M, inputs, outputs, H, W, kernel, pads, bias, last, seed):
    torch.manual_seed(seed)
    pads = tuple(min(p, k - 1) for p, k in zip(pads, kernel, strict=True))
    H, W = max(H, kernel[0]), max(W, kernel[1])
    conv = nn.Conv2d(inputs, outputs, kernel, padding=pads, bias=bias)
    masks = masked(conv, 0.1, seed)
    if masks["weight"].float().mean() > MOST_ALIVE:
        masks["weight"].view(-1)[1:] = False
        conv.weight.data.mul_(masks["weight"])
    x = torch.randn(M, inputs, H, W)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    if masks["weight"].float().mean() <= MOST_ALIVE:
        assert_same(conv, x, masks, exact=True)


def test_linear_layers_and_sequences():
    torch.manual_seed(0)
    linear = nn.Linear(50, 20)
    assert_same(linear, torch.randn(3, 7, 50), masked(linear))
    conv = layer.Conv2d(6, 8, 3, padding=1, step_mode="m")
    masks = masked(conv)
    assert_same(conv, torch.randn(4, 5, 6, 9, 9), masks)
    image = torch.randn(1, 5, 6, 9, 9)
    assert_same(nn.Sequential(conv), image.expand(4, -1, -1, -1, -1), {"0.weight": masks["weight"]})


def test_an_empty_layer():
    conv = nn.Conv2d(3, 4, 3, padding=1)
    conv.weight.data.zero_()
    assert_same(conv, torch.randn(2, 3, 5, 5), {"weight": torch.zeros_like(conv.weight, dtype=torch.bool)})


def test_a_network_learns_the_same():
    """Two steps of SGD with momentum, fused and sparse against masked dense."""
    torch.manual_seed(0)
    dense = build("fashion-conv-large", T=2, size=8)
    masks = masked(dense)
    sparse = copy.deepcopy(dense)
    fuse(sparse)
    x, steps = torch.rand(2, 1, 8, 8), []
    with sparse_finetune(sparse, masks) as report:
        assert [row.name for row in report if not row.sparse] == []
        for net in (dense, sparse):
            optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
            for _ in range(2):
                optimizer.zero_grad()
                functional.reset_net(net)
                out = net(x)
                out.square().mean().backward()
                for name, mask in masks.items():
                    dict(net.named_parameters())[name].grad.mul_(mask)
                optimizer.step()
                steps.append(out.detach())
    assert_close(steps[2:], steps[:2], rtol=1e-3, atol=1e-4)
    for name, parameter in sparse.named_parameters():
        if name in masks:
            assert not parameter[~masks[name]].any()


def test_layers_it_would_not_help_stay_dense():
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 4, 3, padding=3),
        nn.Conv2d(4, 4, 3).double(),
    )  # fmt: skip
    masks = {n: torch.zeros_like(p, dtype=torch.bool) for n, p in model.named_parameters() if p.dim() == 4}
    masks["1.weight"] |= True
    for name, mask in masks.items():
        model.get_parameter(name).data.mul_(mask)
    report = sparsify(model, masks)
    assert not any(row.sparse for row in report)
    reasons = [row.reason for row in report]
    for reason, words in zip(reasons, ("stride 1", "dense is faster", "one group", "narrower", "float32"), strict=True):
        assert words in reason
    assert all("forward" not in vars(m) for m in model.modules())


def test_everything_is_put_back():
    model = fuse(build("digits-conv", T=2, size=8))
    before = [dict(vars(m)) for m in model.modules()]
    masks = masked(model)
    sparsify(model, masks)
    assert any("_sparse_state" in vars(m) for m in model.modules())
    sparsify(model, masks)
    densify(model)
    for module, state in zip(model.modules(), before, strict=True):
        assert vars(module).keys() == state.keys()
        assert vars(module).get("forward") == state.get("forward")


def test_threads_change_no_bit():
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 8, 3, padding=1)
    masks, x = masked(conv), torch.randn(50, 8, 12, 12)
    before, found = torch.get_num_threads(), []
    try:
        with sparse_finetune(conv, masks):
            for threads in (1, 3):
                torch.set_num_threads(threads)
                found.append(gradients(conv, x, masks))
    finally:
        torch.set_num_threads(before)
    (out, g_x, kept, _), (out3, g_x3, kept3, _) = found
    assert torch.equal(out, out3)
    assert torch.equal(g_x, g_x3)
    assert torch.equal(kept["weight"], kept3["weight"])


def test_wrong_masks_are_refused():
    conv = nn.Conv2d(2, 2, 3)
    with pytest.raises(LookupError, match="no parameter named 'wieght'; did you mean 'weight'"):
        sparsify(conv, {"wieght": torch.zeros(1, dtype=torch.bool)})
    with pytest.raises(InvalidValue, match="shape"):
        sparsify(conv, {"weight": torch.zeros(2, 2, dtype=torch.bool)})
    with pytest.raises(InvalidValue, match="not 0"):
        sparsify(conv, {"weight": torch.zeros(2, 2, 3, 3, dtype=torch.bool)})
    with pytest.raises(InvalidValue, match="only 0 and 1"):
        sparsify(conv, {"weight": torch.full((2, 2, 3, 3), 0.5)})


def test_a_refusal_leaves_every_layer_as_it_was():
    net = nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 40))
    masks = masked(net)
    sparsify(net, masks)
    with pytest.raises(InvalidValue, match="shape"):
        sparsify(net, {"0.weight": masks["0.weight"], "1.weight": torch.zeros(2, 2, dtype=torch.bool)})
    assert ["forward" in vars(layer) for layer in net] == [True, True]
    densify(net)


def test_without_a_compiler_everything_stays_dense(monkeypatch):
    monkeypatch.setattr(native, "library", lambda name: None)
    conv = nn.Conv2d(2, 30, 3)
    masks = masked(conv, 0.02)
    (row,) = sparsify(conv, masks)
    assert not row.sparse
    assert row.reason == "no C++ compiler"
