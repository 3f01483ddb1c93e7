"""The Pruner over whole channels: exact counts, held masks, exact resume, budgets, refusals."""

import pytest
import torch
import torch.nn.functional as F

import spikeprune as sp
from nets import assert_same, batch, conv_net, sgd, train, weights_of
from spikeprune.core.errors import InvalidValue, MissingEvidence
from spikeprune.core.evidence import Evidence
from spikeprune.core.statistic import ChannelMean, Components
from spikeprune.count.costs import network_cost
from spikeprune.methods.criticality import Criticality

SCHEDULE = sp.Cubic(0.5, 0, 8, 2)  # of 10 channels 7, 5, 5 and 5 are kept


def attached(method="criticality", **keywords):
    model = conv_net()
    optimizer = sgd(model)
    pruner = sp.Pruner(model, method, SCHEDULE, pattern="channel", **keywords).attach(optimizer)
    return model, optimizer, pruner


def test_channels_are_counted_and_their_dead_entries_held_at_zero():
    model, optimizer, pruner = attached(Criticality(regrow=sp.Constant(0.3)))
    assert [event.kept for event in pruner.preview()] == [None] * 4
    assert pruner.sparsity == 0

    def after(step):
        for name, mask in pruner.masks.items():
            parameter = model.get_parameter(name)
            assert not parameter[~mask].any()
            assert not optimizer.state[parameter]["momentum_buffer"][~mask].any()

    train(model, optimizer, 10, after=after)
    assert [event.kept for event in pruner.preview()] == [7, 5, 5, 5]
    assert [r["kept"] for r in pruner.rounds] == [7, 5, 5, 5]
    assert [r["regrown"] for r in pruner.rounds] == [2, 1, 1, 1]  # floor(.3 * 7), floor(.3 * 5)
    assert (pruner.alive, pruner.prunable, pruner.sparsity) == (5, 10, 0.5)
    assert set(pruner.masks) == {"0.weight", "1.weight", "1.bias", "4.weight", "5.weight", "5.bias"}
    assert int(pruner.masks["1.bias"].sum() + pruner.masks["5.bias"].sum()) == 5
    pruner.finish()
    small, _ = sp.shrink(model, pruner.masks, batch(1)[0])
    assert small[0].out_channels + small[4].out_channels == 5


@pytest.mark.parametrize("steps", [0, 3, 4, 9])
@pytest.mark.parametrize("budget", ["weights", "synops"])
def test_resume_is_exact(steps, budget):
    def fresh():
        return attached(Criticality(regrow=sp.Constant(0.3)), budget=budget)

    model, optimizer, pruner = fresh()
    train(model, optimizer, 12)
    first, first_optimizer, first_pruner = fresh()
    train(first, first_optimizer, steps)
    again, optimizer, resumed = fresh()
    again.load_state_dict(first.state_dict())
    optimizer.load_state_dict(first_optimizer.state_dict())
    resumed.load_state_dict(first_pruner.state_dict())
    train(again, optimizer, 12 - steps, first=steps + 1)
    assert_same(weights_of(again), weights_of(model))
    assert_same(dict(resumed.masks), dict(pruner.masks))
    assert resumed.rounds == pruner.rounds


def test_a_budget_of_computation_is_one_of_the_network_that_is_left():
    model = conv_net()
    pruner = sp.Pruner(model, "bn-scale", sp.OneShot(0.5), pattern="channel", budget="macs").trace(batch(1)[0])
    space = pruner._space.space
    cost = network_cost("macs", space.groups, model, pruner._observer.graph)
    whole = cost(pruner.channels)
    pruner.step()
    spent = cost(pruner.channels)
    assert spent <= whole / 2
    # Ten channels are too few to meet it within 1 %; but one more of any layer would be too much.
    for name, alive in pruner.channels.items():
        more = alive.clone()
        more[torch.nonzero(~alive)[:1]] = True
        assert torch.equal(more, alive) or cost({**pruner.channels, name: more}) > whole / 2


def test_taylor_is_the_squared_slope_of_the_loss_by_a_gate():
    model = conv_net()
    x, y = batch(1)
    grown = torch.ones(4, requires_grad=True)
    with torch.no_grad():  # a gate multiplies the shift too, which a fresh BatchNorm hides with beta = 0
        model[1].bias.uniform_(-1, 1)
    gamma = model[1].weight.detach().clone()
    pruner = sp.Pruner(model, "taylor", sp.OneShot(0.5), pattern="channel")
    pruner.observe([(x, y)], lambda output, y: F.cross_entropy(output.mean(0), y))
    values = {n: p.detach() for n, p in model.named_parameters()}
    grads = pruner._updater.gradients.summed(lambda g: g)
    evidence = Evidence(
        pruner._space.weights(), pruner.channels, grads=pruner._space.grads(grads, values),
        before=pruner._space.weights(values), channels=pruner._space.facts(grads, values),
    )  # fmt: skip
    score = pruner.method.score(evidence)["0"]
    shift = model[1].bias.detach().clone()
    del model[1].weight, model[1].bias
    model[1].weight, model[1].bias = gamma * grown, shift * grown
    F.cross_entropy(model(x).mean(0), y).backward()
    assert torch.allclose(score, grown.grad.square(), rtol=1e-4)


def test_components_are_those_of_the_whole_tensor():
    torch.manual_seed(0)
    v = torch.randn(3, 4, 5, 2, 2)  # [T, N, C, H, W]
    statistic = Components(lambda u: u, 1.0)
    for part in (v[:, :1], v[:, 1:]):
        statistic.begin()
        for step in part:
            statistic.step(step)
    rows = v.mean(0).movedim(1, -1).reshape(-1, 5).double()
    # With all components kept a channel's share is its own variance.
    assert torch.allclose(statistic.result().double(), rows.var(0, correction=0), rtol=1e-5)


def test_rates_and_potentials_by_hand():
    class Site:
        def spikes(self, u):
            return (u >= 0).float()

        def potential(self, u):
            return u + 1

        def per_channel(self, curve, space):
            return ChannelMean(curve, space)

    u = torch.tensor([[-2.0, 0.0, 0.5, -0.5]]).view(1, 2, 2)  # one sample, two channels, two positions
    wanted = {"firing-rate": [0.5, 0.5], "membrane": [1.0, 1.0], "bn-scale-rate": [0.5, 0.5]}
    for name, values in wanted.items():
        statistic = sp.Pruner(conv_net(), name, sp.OneShot(0.5), pattern="channel").method.statistic(Site())
        statistic.step(u)
        assert statistic.result().tolist() == values


def test_authors_rule_on_channels():
    model = conv_net()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([0.9, 0.1, 0.2, 0.8]))
        model[5].weight.copy_(torch.tensor([0.3, 0.4, 0.5, 0.6, 0.7, 1.0]))
    method = Criticality(regrow=sp.Constant(0.3), rule="authors")
    pruner = sp.Pruner(model, method, sp.OneShot(0.45), pattern="gate")
    pruner.observe([batch(1)[0]])
    pruner.step()
    # i = int(4.5) = 4, G = int(6 * .3) = 1, t = sorted[5] = .6: four lie above it, one comes back
    assert (pruner.rounds[0]["kept"], pruner.rounds[0]["regrown"]) == (5, 1)
    above = torch.tensor([False, False, False, False, True, True])
    assert bool((pruner.channels["4"] | ~above).all())


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"method": "pca", "pattern": "weight"}, "pattern='channel' or 'gate'"),
        ({"method": "gradient"}, "single weights"),
        ({"method": Criticality(unit="synapse")}, "single weights"),
        ({"method": "magnitude", "allocate": "erk"}, "ERK"),
        ({"method": "magnitude", "start": "random"}, "starts dense"),
        ({"method": "magnitude", "sparsity": 0.9}, "a layer would vanish"),
        ({"method": "magnitude", "sparsity": 0.99, "budget": "macs"}, "cannot be met"),
    ],
)
def test_what_cannot_be_is_refused(keywords, message):
    keywords = {"pattern": "channel", "sparsity": 0.5, **keywords}
    with pytest.raises(InvalidValue, match=message) as caught:
        sp.prune(conv_net(), keywords.pop("method"), data=[batch(1)[0]], **keywords)
    assert 20 <= len(str(caught.value)) <= 300


def test_one_shot_needs_data_and_an_example_must_fit():
    with pytest.raises(MissingEvidence, match="data="):
        sp.prune(conv_net(), "magnitude", 0.5, pattern="channel")
    pruner = sp.Pruner(conv_net(), "magnitude", sp.OneShot(0.5), pattern="channel")
    with pytest.raises(InvalidValue, match=r"shape \[1, 2, 8, 8\]|shape \[3, 4, 5, 8, 8\]"):
        pruner.trace(torch.rand(3, 4, 5, 8, 8))


def test_criticality_of_channels_can_be_measured_after_the_cut():
    model = conv_net()
    optimizer = sgd(model)
    method = sp.Criticality(regrow=sp.Constant(0.3), measure="after")
    pruner = sp.Pruner(model, method, sp.Cubic(to=0.5, end=6, every=3), pattern="channel").attach(optimizer)
    train(model, optimizer, 7)
    assert pruner.rounds[-1].kept == 5
    assert pruner.rounds[0].regrown > 0
