"""GraSP and the curvature that it ranks by: worked by hand, when it is shown, and where there is none."""

import json
from pathlib import Path

import norse
import pytest
import snntorch
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import surrogate
from torch import nn

import spikeprune as sp
from nets import assert_same, batch, conv_net, sgd, train, weights_of
from spikeprune.cli.main import main
from spikeprune.core.errors import InvalidValue, MissingEvidence
from spikeprune.methods.grasp import Grasp
from spikeprune.model.adapter import surrogate_derivative
from spikeprune.model.curvature import curvature


def line():
    """y = 3 x1 - x2."""
    model = nn.Linear(2, 1, bias=False)
    model.weight.data = torch.tensor([[3.0, -1.0]])
    return model


def half_square(y, target):
    return (y - target).square().sum() / 2


DATA = [(torch.tensor([[1.0, 2.0]]), torch.zeros(1, 1))]


def products(masks=None, softening=1.0, data=DATA):
    masks = {"weight": torch.ones(1, 2, dtype=torch.bool)} if masks is None else masks
    return curvature(line(), None, masks, data, half_square, softening, lambda value: value)["weight"].tolist()


def test_the_product_worked_by_hand():
    # w x = 1, so g = 1 x = (1, 2); H = x x^T, so H g = x (x . g) = 5 (1, 2).
    assert products() == [[5.0, 10.0]]
    # Outputs / 2: g = x / 4, H = x x^T / 4, so H g = 5 x / 16.
    assert products(softening=2.0) == [[5 / 16, 10 / 16]]
    # Two batches: g = 2 x, H = 2 x x^T.
    assert products(data=DATA * 2) == [[20.0, 40.0]]
    # A dead weight has no part in g = (1, 0): H g = x (x . g) = (1, 2).
    assert products({"weight": torch.tensor([[True, False]])}) == [[1.0, 2.0]]


def test_the_weight_that_lowers_the_gradient_is_cut():
    # Scores w (H g) = 15 and -10. Without the second weight w x = 3 and |g|^2 = 9 * 5; without the first it is 4 * 5.
    model = line()
    masks = sp.prune(model, sp.Grasp(temperature=1.0), 0.5, data=DATA, loss=half_square)
    assert masks["weight"].tolist() == [[True, False]]


def test_the_score_has_the_weights_that_the_product_belongs_to():
    # Scores 15 and -10 at weights (3, -1), as above; the step then makes them (-1, 3), where they would be -5 and 30.
    model = line()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    pruner = sp.Pruner(model, Grasp(temperature=1.0), sp.OneShot(0.5)).attach(optimizer)
    pruner.observe(DATA, half_square)
    model.weight.grad = torch.tensor([[4.0, -4.0]])
    optimizer.step()
    assert pruner.masks["weight"].tolist() == [[True, False]]
    assert model.weight.tolist() == [[-1.0, 0.0]]


def test_batches_may_come_one_by_one():
    one_by_one = (batch for batch in DATA)
    masks = sp.prune(line(), sp.Grasp(temperature=1.0), 0.5, data=one_by_one, loss=half_square)
    assert masks["weight"].tolist() == [[True, False]]


def loss(output, y):
    return F.cross_entropy(output.mean(0), y)


def test_nothing_of_the_model_changes_but_the_cut_weights():
    model = conv_net()
    model(batch(3)[0])
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before, v, grad = weights_of(model), model[2].v.clone(), model[0].weight.grad
    masks = sp.prune(model, "grasp", 0.5, data=(batch(n) for n in (1, 2)), loss=loss)  # a generator is seen once
    assert masks.alive == 384
    assert_same({n: w * masks[n] if n in masks else w for n, w in before.items()}, weights_of(model))
    assert torch.equal(model[2].v, v)
    assert model[0].weight.grad is grad
    assert model[4].weight.grad is None


def trained(observe):
    """A run of three mask updates, in steps 2, 4 and 6; `observe(pruner, step)` comes before each step."""
    model = conv_net()
    optimizer = sgd(model)
    pruner = sp.Pruner(model, "grasp", sp.Cubic(to=0.8, end=6, every=2)).attach(optimizer)
    for step in range(1, 7):
        observe(pruner, step)
        train(model, optimizer, 1, first=step)
    return pruner


def test_it_works_within_training_where_batches_are_observed():
    def observe(pruner, step):
        if step % 2 == 0:
            pruner.observe([batch(step)], loss)

    pruner = trained(observe)
    assert pruner.alive == 153
    assert [r.cut for r in pruner.rounds] == [True] * 3


@pytest.mark.parametrize(
    ("when", "text"),
    [
        (
            0,
            "grasp needs the loss's curvature, which training does not show, and at step 2 no batch was observed; call",
        ),
        (1, "and at step 2 batches were last observed 2 steps ago; call pruner.observe"),
    ],
)
def test_a_loop_that_shows_nothing_is_told_what_to_call(when, text):
    def observe(pruner, step):
        if step == when:
            pruner.observe([batch(step)], loss)

    with pytest.raises(MissingEvidence, match=text) as caught:
        trained(observe)
    assert 20 <= len(str(caught.value)) <= 300


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return grad * 2


class _Twice(nn.Module):
    def forward(self, x):
        return _Once.apply(x)


class _Named(nn.Module):
    def forward(self, x):
        return {"y": x}


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: nn.Sequential(line(), _Twice()), "the gradient of Sequential cannot be differentiated once more"),
        (lambda: nn.Sequential(line(), _Named()), "returns dict, which cannot be divided by the temperature 200"),
    ],
)
def test_a_network_without_a_curvature_is_refused(make, text):
    with pytest.raises(InvalidValue, match=text) as caught:
        sp.prune(make(), "grasp", 0.5, data=DATA, loss=half_square)
    assert 20 <= len(str(caught.value)) <= 300


def _norse(u):
    return norse.torch.functional.threshold.threshold(u, "super", 2.0)


@pytest.mark.parametrize(
    "spike",
    [surrogate.ATan(), surrogate.Sigmoid(), snntorch.surrogate.atan(), snntorch.surrogate.fast_sigmoid(), _norse],
    ids=["sj-atan", "sj-sigmoid", "snn-atan", "snn-fast-sigmoid", "norse-super"],
)
def test_surrogates_of_the_frameworks_can_be_differentiated_twice(spike):
    u = torch.tensor([-0.8, -0.3, 0.2, 0.7], dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(spike(u).sum(), u, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), u)
    step = 1e-6
    found = [surrogate_derivative(spike, u.detach() + side * step) for side in (1, -1)]
    assert torch.allclose(second, (found[0] - found[1]) / (2 * step), atol=1e-6)
    assert second.abs().min() > 0.001


def test_a_fused_network_must_be_unfused_first():
    model = sp.fuse(conv_net())
    with pytest.raises(InvalidValue, match=r"a fused model needs sp\.unfuse first"):
        sp.prune(model, "grasp", 0.5, data=[batch(1)], loss=loss)
    found = [dict(sp.prune(m, "grasp", 0.5, data=[batch(1)], loss=loss)) for m in (sp.unfuse(model), conv_net())]
    assert_same(*found)


@pytest.mark.parametrize("away", [lambda y, target: y.sum() * 0, lambda y, target: y.detach().sum()])
def test_a_loss_without_a_gradient_is_refused(away):
    with pytest.raises(InvalidValue, match="gradient of the loss is 0 for every prunable weight of Linear"):
        sp.prune(line(), sp.Grasp(), 0.5, data=DATA, loss=away)


def test_a_batch_without_a_gradient_adds_nothing():
    def loss(y, target):
        return half_square(y, target) if target is not None else y.detach().sum()

    masks = {"weight": torch.ones(1, 2, dtype=torch.bool)}
    found = curvature(line(), None, masks, [*DATA, DATA[0][0]], loss, 1.0, lambda value: value)
    assert found["weight"].tolist() == products()


def test_what_it_lacks_is_named():
    with pytest.raises(MissingEvidence, match="grasp needs gradients; pass loss="):
        sp.prune(line(), "grasp", 0.5, data=DATA)
    with pytest.raises(InvalidValue, match="grasp takes a temperature above 0, got 0"):
        sp.Grasp(temperature=0)
    with pytest.raises(InvalidValue, match="grasp works by single weights"):
        sp.prune(conv_net(), "grasp", 0.5, data=[batch(1)], loss=loss, pattern="channel")


def test_outputs_in_a_tuple_are_divided_too():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.line = line()

        def forward(self, x):
            return self.line(x), [self.line(x)]

    def first(outputs, target):
        return half_square(outputs[0], target) + 0 * outputs[1][0].sum()

    found = [
        dict(sp.prune(make, Grasp(2.0), 0.5, data=DATA, loss=of)).popitem()[1]
        for make, of in ((Both(), first), (line(), half_square))
    ]
    assert torch.equal(*found)


def test_a_recipe_shows_the_batch_of_its_mask_update(tmp_path, capsys):
    words = ["--epochs", "1", "--data.limit", "64", "--baseline", "false", "--method", "grasp", "--sparsity", "0.9"]
    assert main(["run", "digits", *words, "--model", "digits-conv-small", "--out", str(tmp_path)]) == 0
    record = json.loads((Path(capsys.readouterr().out.splitlines()[-1]) / "record.json").read_text())
    assert record["rounds"][0]["step"] == 1
    assert record["sparsity"] == pytest.approx(0.9, abs=1e-3)
