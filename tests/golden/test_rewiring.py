"""Methods that rewire a sparse network, on numbers that can be worked by hand."""

from unittest import mock

import pytest
import torch
from torch.testing import assert_close

import spikeprune as sp
from spikeprune.core.errors import InvalidValue
from spikeprune.core.evidence import Evidence
from spikeprune.methods.base import Training
from spikeprune.methods.deep_r import DeepR
from spikeprune.methods.esl_snn import EslSnn

ALIVE = torch.tensor([[True, True, False, False]])


def training(weight, memory, rate=0.1):
    return Training(
        weights={"w": weight}, grads={"w": torch.ones(1, 4)}, masks={"w": ALIVE}, memory=memory, rates={"w": rate},
        progress=0.5, sparsity=0.5, select=lambda scores: {},
    )  # fmt: skip


def test_deep_r_cuts_what_changes_its_sign_and_draws_another():
    # Signs +1 and -1 of 0.5 and -0.02. Gradients of dead weights are zeroed before the update.
    memory, method = {}, DeepR(l1=0.1, noise=0.0)
    first = training(torch.tensor([[0.5, -0.02, 0.0, 0.0]]), memory)
    method.before_update(first)
    assert_close(first.grads["w"], torch.tensor([[1.0, 1.0, 0.0, 0.0]]))
    # The optimizer makes of them 0.4 and +0.01: theta = 0.4 and -0.01; the pull is 0.1 * 0.1, so 0.39 and -0.02.
    # The second dies. Of the candidates 1, 2 and 3 the draw .2, .9, .5 takes the third: theta = 1e-12.
    memory["sign"]["w"][0, 2:] = torch.tensor([-1.0, 1.0])
    after = training(torch.tensor([[0.4, 0.01, 0.0, 0.0]]), memory)
    draw = torch.tensor([[0.99, 0.2, 0.9, 0.5]])
    with mock.patch("spikeprune.methods.deep_r._uniform", return_value=draw):
        masks = method.after_update(after)
    assert masks["w"].tolist() == [[True, False, True, False]]
    assert_close(after.weights["w"], torch.tensor([[0.39, 0.0, -1e-12, 0.0]]), rtol=1e-6, atol=0.0)


def test_deep_r_walks_by_its_noise_alone():
    memory, method = {}, DeepR(l1=0.0, noise=2.0)
    method.before_update(training(torch.tensor([[0.5, -0.4, 0.0, 0.0]]), memory))
    walked = training(torch.tensor([[0.5, -0.4, 0.0, 0.0]]), memory)
    step = torch.tensor([[1.0, -1.0, 7.0, 7.0]])  # theta: 0.5 + 0.1 * 2 = 0.7 and 0.4 - 0.2 = 0.2
    with mock.patch("spikeprune.methods.deep_r._normal", return_value=step):
        masks = method.after_update(walked)
    assert masks["w"].equal(ALIVE)
    assert_close(walked.weights["w"], torch.tensor([[0.7, -0.2, 0.0, 0.0]]))


def test_deep_r_keeps_the_number_of_connections_of_each_layer():
    from nets import conv_net, sgd, train

    model = conv_net()
    optimizer = sgd(model)
    method = DeepR(l1=0.5, noise=0.5)  # strong enough that connections change in these few steps
    pruner = sp.Pruner(model, method, sp.Constant(0.75, begin=0, end=8, every=4), start="random", allocate="erk")
    pruner.attach(optimizer)
    counts, moved, before = [], 0, dict(pruner.masks)

    def after(step):
        nonlocal moved, before
        counts.append({n: int(m.sum()) for n, m in pruner.masks.items()})
        moved += sum(int((m & ~before[n]).sum()) for n, m in pruner.masks.items()) if step < 8 else 0
        before = {n: m.clone() for n, m in pruner.masks.items()}

    train(model, optimizer, 7, after=after)
    assert all(count == counts[0] for count in counts)
    assert moved > 0


def test_esl_snn_grows_by_gradient_or_by_a_draw():
    evidence = Evidence(
        weights={"w": torch.tensor([[0.5, -0.1, 0.0, 0.0]])},
        masks={"w": ALIVE},
        grads={"w": torch.tensor([[0.1, 0.2, -3.0, 0.4]])},
        generator=torch.Generator().manual_seed(1),
    )
    assert_close(EslSnn().score(evidence)["w"], torch.tensor([[0.5, 0.1, 0.0, 0.0]]))
    assert_close(EslSnn().regrow_score(evidence)["w"], torch.tensor([[0.1, 0.2, 3.0, 0.4]]))
    drawn = EslSnn(growth_rule="random").regrow_score(evidence)["w"]
    assert_close(drawn, torch.rand(1, 4, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("make", [lambda: DeepR(l1=-1), lambda: DeepR(noise=-1e-9), lambda: EslSnn(growth_rule="most")])
def test_settings_that_cannot_be_are_refused(make):
    with pytest.raises(InvalidValue) as caught:
        make()
    assert 20 <= len(str(caught.value)) <= 300
