"""`polish=`: after the last cut, all remaining weights follow the dense network, without labels."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, layer
from torch import Tensor, nn

import spikeprune as sp
from nets import SIZE, batch, lif, weights_of
from spikeprune.core.errors import InvalidValue
from spikeprune.integrations.spikingjelly import SpikingJelly
from spikeprune.squeeze.polish import Polish, Polisher
from spikeprune.squeeze.statistics import measure_again

pytestmark = pytest.mark.filterwarnings("ignore:.*so the ridge decides")


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    found = nn.Sequential(
        layer.Conv2d(2, 8, 3, padding=1, bias=False), layer.BatchNorm2d(8), lif(), layer.Flatten(),
        layer.Linear(8 * SIZE * SIZE, 3),
    )  # fmt: skip
    functional.set_step_mode(found, "m")
    with torch.no_grad():
        found[1].weight.mul_(3.0)
    return found.eval()


def outputs(model: nn.Module, x: Tensor) -> Tensor:
    functional.reset_net(model)
    with torch.no_grad():
        return model(x).mean(0)


def divergence(model: nn.Module, dense: nn.Module, x: Tensor) -> float:
    found = [F.log_softmax(outputs(m, x), 1) for m in (model, dense)]
    return float(F.kl_div(*found, reduction="batchmean", log_target=True))


def data() -> list[Tensor]:
    return [batch(i)[0] for i in range(4)]


def test_it_brings_the_outputs_nearer_to_the_dense_ones_and_keeps_the_zeros():
    dense, plain, polished = net(), net(), net()
    cut = sp.squeeze(plain, data(), 0.8)
    out = sp.squeeze(polished, data(), 0.8, polish=20)
    x = torch.cat(data(), 1)
    assert divergence(polished, dense, x) < 0.8 * divergence(plain, dense, x)
    for name, mask in out.masks.items():
        assert torch.equal(mask, cut.masks[name])
        assert not bool(polished.get_parameter(name)[~mask].any())
    assert "polishing" in out.phases


def test_the_model_is_left_as_a_squeeze_leaves_it():
    model = net()
    model[4].bias.requires_grad_(False)
    sp.squeeze(model, data(), 0.8, polish=2)
    assert [p.requires_grad for p in model.parameters()] == [True, True, True, True, False]
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())
    assert not any(m.training for m in model.modules())
    once = weights_of(model)
    sp.squeeze(model, data(), 0.8, polish=2)  # the sparsity is met
    assert all(torch.equal(v, once[n]) for n, v in model.state_dict().items())


def test_excluded_weights_and_biases_stay():
    model = net()
    before = weights_of(model)
    sp.squeeze(model, data(), 0.8, polish=2, exclude="4")
    assert torch.equal(model[4].weight, before["4.weight"])
    assert torch.equal(model[4].bias, before["4.bias"])


def test_same_seed_same_result():
    found = []
    for _ in range(2):
        model = net()
        sp.squeeze(model, [torch.cat(data(), 1)], 0.8, polish=2, seed=3)
        found.append(weights_of(model))
    assert all(torch.equal(v, found[1][n]) for n, v in found[0].items())


def test_the_first_step_is_the_gradient_worked_by_autograd():
    dense, model = net(), net()
    with torch.no_grad():
        model[0].weight.mul_(0.9)
    x, adapter = data()[0], SpikingJelly()
    masks = {"0.weight": torch.ones_like(model[0].weight, dtype=torch.bool)}
    kept = Polisher(dense, adapter, [x])
    polisher = Polisher(model, adapter, [])
    polisher.targets = kept.targets
    other = copy.deepcopy(model)
    functional.reset_net(other)
    soft = F.log_softmax(outputs(dense, x) / 2, 1)
    functional.reset_net(other)
    loss = 4 * F.kl_div(F.log_softmax(other(x).mean(0) / 2, 1), soft, reduction="batchmean", log_target=True)
    (want,) = torch.autograd.grad(loss, [other[0].weight])
    before = model[0].weight.detach().clone()
    size = before.square().mean().sqrt()
    pairs = [(model[0].weight, masks["0.weight"])]
    assert polisher._try(pairs, [0], Polish(1, rate=0.1, share=0.0), 1e9, lambda order, _: order)
    moved = model[0].weight.detach() - before
    clear = want.abs() > 1e-5  # a first step of Adam is the sign of the gradient
    torch.testing.assert_close(moved[clear], -0.1 * size * want[clear].sign(), rtol=2e-3, atol=1e-6)


def perturbed():
    """A polisher of a network whose weights of one input are half those of the dense one, and its masks."""
    dense = net()
    measure_again(dense, SpikingJelly(), data())
    model = copy.deepcopy(dense)
    with torch.no_grad():
        model[0].weight[:, 0].mul_(0.5)
    polisher = Polisher(model, SpikingJelly(), [])
    polisher.targets = Polisher(dense, SpikingJelly(), data()).targets
    return polisher, {"0.weight": torch.ones_like(model[0].weight, dtype=torch.bool)}


@pytest.mark.parametrize(("statistics", "rate", "taken"), [(True, 6.0, 6 / 12), (False, 3.0, 3 / 16)])
def test_steps_that_lead_away_are_taken_back_and_smaller_ones_are_tried(statistics, rate, taken):
    polisher, masks = perturbed()
    polisher.statistics = statistics
    before = polisher.loss(1.0)
    assert polisher.fit(masks, Polish(5, rate=rate), seed=0) == pytest.approx(taken)
    assert polisher.loss(1.0) < before


def by_batch_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spikeprune.squeeze.polish._WAYS", ((1.0, True),))


def test_steps_that_normalise_by_the_batch_leave_statistics_of_the_new_weights(monkeypatch):
    by_batch_only(monkeypatch)
    polisher, masks = perturbed()
    norm, modes = polisher.model[1], [m.training for m in polisher.model.modules()]
    norm.num_batches_tracked.fill_(7)
    seen: list[bool] = []
    norm.register_forward_pre_hook(lambda layer, _: seen.append(layer.training and not layer.track_running_stats))
    before = norm.running_mean.clone()
    assert polisher.fit(masks, Polish(10, rate=0.01), seed=0) == 0.01
    assert any(seen)
    assert (norm.num_batches_tracked, norm.track_running_stats) == (7, True)
    assert [m.training for m in polisher.model.modules()] == modes
    assert not torch.equal(norm.running_mean, before)
    with torch.no_grad():
        currents = torch.cat([polisher.model[0](target.x) for target in polisher.targets], 1)
    torch.testing.assert_close(norm.running_mean, currents.mean((0, 1, 3, 4)))


def test_batches_of_one_value_per_channel_keep_the_running_statistics(monkeypatch):
    by_batch_only(monkeypatch)
    monkeypatch.setattr("spikeprune.squeeze.polish._WAYS_WITHOUT_NORMS", ((0.05, False),))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).eval()
    polisher = Polisher(model, None, [torch.randn(1, 4) for _ in range(3)], match_spikes=False)
    with torch.no_grad():
        model[0].weight.mul_(0.5)
    before = weights_of(model)
    assert polisher.fit({"0.weight": torch.ones(8, 4, dtype=torch.bool)}, Polish(5), seed=0) == pytest.approx(0.003)
    assert torch.equal(model[1].running_mean, before["1.running_mean"])
    assert not torch.equal(model[0].weight, before["0.weight"])


@pytest.mark.parametrize("rate", [1e3, 1e30])
def test_where_every_step_leads_away_the_weights_stay(rate):
    polisher, masks = perturbed()
    before = weights_of(polisher.model)
    assert polisher.fit(masks, Polish(20, rate=rate), seed=0) == 0
    assert all(torch.equal(v, before[n]) for n, v in polisher.model.state_dict().items())


def test_a_squeeze_says_that_it_was_not_polished(monkeypatch):
    monkeypatch.setattr("spikeprune.squeeze.run.Polish", lambda epochs: Polish(epochs, rate=1e6))
    model, plain = net(), net()
    out = sp.squeeze(model, data(), 0.8, polish=2)
    sp.squeeze(plain, data(), 0.8)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))
    assert any("led away" in note for note in out.notes)


def test_outputs_without_gradients_are_left_and_noted():
    class Silent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = net()

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                return self.body(x)

    model, plain = Silent(), Silent()
    out = sp.squeeze(model.eval(), data(), 0.8, polish=2)
    sp.squeeze(plain.eval(), data(), 0.8)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))
    assert any("not polished" in note for note in out.notes)


def test_bad_passes_are_refused():
    with pytest.raises(InvalidValue, match="polish must be a whole number of at least 0"):
        sp.squeeze(net(), data(), 0.8, polish=-1)


def test_many_images_are_followed_by_their_outputs_alone(monkeypatch):
    kept: list[int] = []
    whole = Polisher.fit

    def fit(self: Polisher, *args: Any) -> float | None:
        kept.append(sum(len(target.spikes) for target in self.targets))
        return whole(self, *args)

    monkeypatch.setattr(Polisher, "fit", fit)
    sp.squeeze(net(), data(), 0.8, polish=1)
    monkeypatch.setattr("spikeprune.squeeze.run._FEW", 3)
    model = net()
    sp.squeeze(model, data(), 0.8, polish=1)
    assert kept == [4, 0]  # one neuron layer, four batches
    assert not torch.equal(model[4].weight, net()[4].weight)
