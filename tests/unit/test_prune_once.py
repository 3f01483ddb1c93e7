"""`sp.prune`: one shot without a training loop, which leaves everything but the weights as it was."""

import pytest
import torch
import torch.nn.functional as F

import spikeprune as sp
from nets import assert_same, batch, conv_net, mlp
from spikeprune.core.errors import InvalidValue, MissingEvidence


def loss(output, y):
    return F.cross_entropy(output.mean(0), y)


def test_magnitude_by_hand():
    model = torch.nn.Sequential(torch.nn.Linear(3, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -5.0, 2.0], [4.0, -3.0, 0.5]]))
    masks = sp.prune(model, "magnitude", sparsity=0.5)
    assert masks["0.weight"].tolist() == [[False, True, False], [True, True, False]]
    assert model[0].weight.tolist() == [[0.0, -5.0, 0.0], [4.0, -3.0, 0.0]]
    assert (masks.alive, masks.sparsity) == (3, 0.5)


@pytest.mark.parametrize("method", [sp.Criticality(), sp.Criticality(unit="synapse", measure="after"), sp.Gradient()])
@pytest.mark.parametrize("training", [True, False])
def test_nothing_else_changes(method, training):
    model = conv_net().train(training)
    loss(*[model(batch(0)[0]), batch(0)[1]]).backward()  # the user's own gradients and membranes stay
    grads = {n: p.grad for n, p in model.named_parameters()}
    values = {n: p.grad.clone() for n, p in model.named_parameters()}
    others = {n: v.clone() for n, v in model.state_dict().items()}
    v, random = model[2].v, torch.get_rng_state()
    masks = sp.prune(model, method, 0.6, data=[batch(1), batch(2)], loss=loss)
    assert masks.alive == 307  # floor(768 * .4) = 307.2
    assert model.training == training
    assert all(p.grad is grads[n] for n, p in model.named_parameters())
    assert_same({n: p.grad for n, p in model.named_parameters()}, values)
    for name, value in model.state_dict().items():
        if name in masks:  # kept weights have their values, except those regrown, which are 0
            assert torch.equal(value[value != 0], others[name][value != 0])
            assert not value[~masks[name]].any()
        else:
            assert torch.equal(value, others[name])
    assert model[2].v is v
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_gradients_are_summed_over_the_batches():
    # Regrowth takes the largest |dL/dw| over both batches together.
    model = conv_net()
    twin = conv_net()
    masks = sp.prune(model, sp.Gradient(regrow=0.3), 0.6, data=[batch(1), batch(2)], loss=loss)
    for step in (1, 2):
        x, y = batch(step)
        loss(twin(x), y).backward()
        for m in twin.modules():
            if hasattr(m, "reset"):
                m.reset()
    grads = {n: p.grad.abs() for n, p in twin.named_parameters() if n in masks}
    regrown = {n: m & (model.state_dict()[n] == 0) for n, m in masks.items()}
    worst_in = min(float(grads[n][m].min()) for n, m in regrown.items() if m.any())
    best_out = max(float(grads[n][~m].max()) for n, m in masks.items())
    assert worst_in >= best_out * (1 - 1e-4)
    assert sum(int(m.sum()) for m in regrown.values()) == int(0.3 * 307)


def test_keywords_reach_the_pruner():
    masks = sp.prune(mlp(), "magnitude", 0.5, allocate="uniform", exclude=["0.weight"])
    assert list(masks) == ["2.weight"]
    assert masks.alive == 12
    masks = sp.prune(conv_net(), "magnitude", 0.5, pattern="2:4")
    assert (masks["8.weight"].view(-1, 4).sum(1) == 2).all()
    for budget in ("macs", "synops"):
        masks = sp.prune(conv_net(), "magnitude", 0.5, budget=budget, data=[batch(1)[0]])
        assert 0 < masks.alive < 768


def test_inputs_alone_are_data_too():
    assert sp.prune(conv_net(), "criticality", 0.5, data=[batch(1)[0]]).alive == 384


def test_what_is_missing_is_named():
    cases = [
        (lambda: sp.prune(conv_net(), "criticality"), MissingEvidence, "must see batches of data; pass data="),
        (lambda: sp.prune(conv_net(), "gradient", data=[batch(1)]), MissingEvidence, "pass loss="),
        (lambda: sp.prune(conv_net(), "criticality", data=[]), InvalidValue, "data holds no batch"),
        (lambda: sp.prune(conv_net(), "magnitude", 0.5, budget="macs"), MissingEvidence, "pass data="),
        (lambda: sp.prune(conv_net(), "magnitude", sparsity=95), InvalidValue, "for 95 % pass 0.95"),
    ]
    for call, kind, text in cases:
        with pytest.raises(kind, match=text) as caught:
            call()
        assert 20 <= len(str(caught.value)) <= 300
