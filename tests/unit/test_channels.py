"""Channel scores, budgets and masks: formulas by hand, the authors' counts, budgets met."""

import itertools

import pytest
import torch
from spikingjelly.activation_based import layer, neuron
from torch import nn

from spikeprune.core.errors import InvalidValue, MissingEvidence
from spikeprune.core.mask import Outcome
from spikeprune.core.select import keep_under_cost
from spikeprune.core.statistic import pca_score
from spikeprune.core.update import Target, channel_round
from spikeprune.count.costs import check_budget, network_cost
from spikeprune.methods.shared.authors import authors_channels
from spikeprune.model.adapter import find_adapter
from spikeprune.model.channel_space import ChannelSpace
from spikeprune.model.channel_values import bn_scale, channel_masks, per_channel, slope, weight_norm
from spikeprune.model.groups import channel_groups
from spikeprune.model.pairing import pair
from spikeprune.model.trace import trace

X = torch.rand(2, 1, 6, 6)


def net():
    model = nn.Sequential(
        layer.Conv2d(1, 4, 3), layer.BatchNorm2d(4), neuron.LIFNode(), layer.Conv2d(4, 6, 3, bias=False),
        layer.BatchNorm2d(6), neuron.LIFNode(), nn.Flatten(), nn.Linear(24, 3),
    )  # fmt: skip
    graph = trace(model, X, adapter=find_adapter(model))
    return model, graph, channel_groups(graph, model)


def tensors(model):
    return {name: p.detach() for name, p in model.named_parameters()}


def test_bn_scale_is_the_size_of_gamma():
    model, _, (first, _) = net()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([0.5, -2.0, 0.0, 1.0]))
    assert bn_scale(first, tensors(model)).tolist() == [0.5, 2.0, 0.0, 1.0]


def test_weight_norm_is_the_root_mean_square_of_the_filter():
    model, _, (first, _) = net()
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].weight[1] = 3.0
        model[0].weight[2, 0, 0, 0] = 6.0  # 36 / 9 = 4
    assert weight_norm(first, tensors(model)).tolist() == [0.0, 3.0, 2.0, 0.0]


def test_slope_is_gamma_times_its_gradient():
    model, _, (first, _) = net()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([1.0, 2.0, 3.0, 0.0]))
    grads = {"1.weight": torch.tensor([0.5, -1.0, 0.0, 9.0])}
    assert slope(first, tensors(model), grads).tolist() == [0.5, -2.0, 0.0, 0.0]


def test_per_channel_gathers_what_a_flatten_spread():
    model, _, (_, second) = net()
    columns = per_channel(second, tensors(model), "in")  # 24 columns = 6 channels of 4 positions, 3 rows each
    assert columns.shape == (6, 12)
    wanted = model[7].weight.detach().view(3, 6, 4).permute(1, 2, 0).reshape(6, 12)
    assert torch.equal(columns, wanted)


def test_pca_by_hand():
    # variances 3, 1 and 0 along the axes: two components hold all of it
    assert pca_score(torch.diag(torch.tensor([1.0, 0.0, 3.0]))).tolist() == pytest.approx([1.0, 0.0, 3.0])
    # three quarters of the variance are the first component alone
    assert pca_score(torch.diag(torch.tensor([1.0, 0.0, 3.0])), 0.75).tolist() == pytest.approx([0.0, 0.0, 3.0])
    # two channels that move together share one component: variance 2 along (1, 1) / sqrt(2)
    assert pca_score(torch.ones(2, 2)).tolist() == pytest.approx([1.0, 1.0])
    with pytest.raises(InvalidValue, match=r"\(0, 1\]"):
        pca_score(torch.ones(2, 2), 0.0)


def test_masks_take_filters_biases_and_both_parts_of_the_normalisation():
    model, _, groups = net()
    keep = {"0": torch.tensor([True, False, True, False]), "3": torch.ones(6, dtype=torch.bool)}
    masks = channel_masks(groups, keep, model)
    assert set(masks) == {"0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "4.weight", "4.bias"}
    for name in ("0.weight", "0.bias", "1.weight", "1.bias"):
        assert masks[name].shape == model.get_parameter(name).shape
        assert masks[name].flatten(1).all(1).tolist() if masks[name].dim() > 1 else masks[name].tolist() == [1, 0, 1, 0]
    assert masks["3.weight"].all()  # its columns stay as they were, for the day the channels return


@pytest.mark.parametrize(
    ("widths", "percent", "kept", "regrown"),
    [
        # i = int(4224 * .6764) = 2857, G = int(1367 * .05) = 68, kept 4224 - 2857 - 1
        ([64] * 2 + [128] * 2 + [256] * 3 + [512] * 6, 0.6764, 1366, 68),
        # i = int(4416 * .658) = 2905, G = int(1511 * .05) = 75, kept 4416 - 2905 - 1
        ([64] + [128] * 6 + [256] * 6 + [512] * 4, 0.658, 1510, 75),
    ],
)
def test_the_authors_counts(widths, percent, kept, regrown):
    assert sum(widths) in (4224, 4416)
    generator = torch.Generator().manual_seed(0)
    scales = {str(i): torch.rand(w, generator=generator) for i, w in enumerate(widths)}
    critical = {name: torch.rand(len(s), generator=generator) for name, s in scales.items()}
    theirs = authors_channels(scales, critical, percent, 0.05)
    alive = {name: torch.ones_like(s, dtype=torch.bool) for name, s in scales.items()}
    target = Target(int(sum(widths) * (1 - percent) + 1e-6), "global", dict.fromkeys(scales, 0))
    ours = channel_round(scales, critical, alive, target, share=0.05)
    for outcome in (theirs, ours):
        assert sum(int(m.sum()) for m in outcome.alive.values()) == kept
        assert sum(int(m.sum()) for m in outcome.regrown.values()) == regrown
    for name in scales:  # with scores that do not tie, the exact rule and the authors' choose the same channels
        assert torch.equal(theirs.alive[name], ours.alive[name])


def test_cost_by_hand():
    model, graph, groups = net()
    keep = {"0": torch.tensor([True, True, False, False]), "3": torch.tensor([True] * 3 + [False] * 3)}
    # conv 2*9 + 2, BN 2*2, conv 3*2*9, BN 2*3, linear 3*12 + 3
    assert network_cost("parameters", groups, model, graph)(keep) == 20 + 4 + 54 + 6 + 39
    # maps of 4x4 and 2x2, two samples: 2 * (16 * 2*9 + 4 * 3*2*9 + 3*12)
    assert network_cost("macs", groups, model, graph)(keep) == 2 * (16 * 18 + 4 * 54 + 36)
    rates = {"0.weight": torch.ones(1), "3.weight": torch.tensor([0.5, 0.25, 1, 1]), "7.weight": torch.full((24,), 0.1)}
    wanted = 2 * (16 * 18 + 4 * 3 * 9 * 0.75 + 3 * 12 * 0.1)
    assert network_cost("synops", groups, model, graph, rates)(keep) == pytest.approx(wanted)
    with pytest.raises(MissingEvidence, match="budget='synops' needs firing rates"):
        network_cost("synops", groups, model, graph)(keep)
    small = {"0": torch.ones(4, dtype=torch.bool), "3": torch.ones(6, dtype=torch.bool)}
    assert network_cost("parameters", groups, model, graph)(small) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("budget", ["parameters", "macs", "synops"])
@pytest.mark.parametrize("share", [0.0, 0.2])
def test_budgets_are_met_within_a_hundredth(budget, share):
    torch.manual_seed(0)
    widths = [1, 64, 96, 128]
    parts = []
    for before, width in itertools.pairwise(widths):
        parts += [layer.Conv2d(before, width, 3, padding=1, bias=False), layer.BatchNorm2d(width), neuron.LIFNode()]
    model = nn.Sequential(*parts, nn.Flatten(), nn.Linear(128 * 9, 10))
    x = torch.rand(1, 1, 3, 3)
    graph = trace(model, x, adapter=find_adapter(model))
    groups = channel_groups(graph, model)
    rates = {n: torch.rand(p.shape[1]) for n, p in model.named_parameters() if p.dim() > 1}
    cost = network_cost(budget, groups, model, graph, rates)
    scores = {g.name: torch.rand(g.channels) for g in groups}
    alive = {n: torch.ones_like(s, dtype=torch.bool) for n, s in scores.items()}
    allowed = 0.3 * cost(alive)
    target = Target(0, "global", dict.fromkeys(scores, 1), budget=allowed)
    critical = {g.name: torch.rand(g.channels) for g in groups}
    outcome = channel_round(scores, critical, alive, target, share=share, cost=cost)
    assert 0.99 * allowed <= cost(outcome.alive) <= allowed
    grown = sum(int(m.sum()) for m in outcome.regrown.values())
    assert (grown > 0) == (share > 0)
    assert all(not (outcome.regrown[n] & outcome.survivors[n]).any() for n in scores)


def test_a_budget_that_no_network_can_meet():
    model, graph, groups = net()
    floor = {g.name: 1 for g in groups}
    assert check_budget(groups, 0.5, floor) == 5
    assert check_budget(groups, 0.8, floor) == 2
    with pytest.raises(InvalidValue, match=r"keeps 1 of 10 channels.*a layer would vanish.*0\.8000"):
        check_budget(groups, 0.85, floor)
    cost = network_cost("parameters", groups, model, graph)
    with pytest.raises(InvalidValue, match="cannot be met"):
        keep_under_cost({g.name: torch.rand(g.channels) for g in groups}, cost, 10.0, floor)


def test_the_floor_holds_whatever_the_scores():
    scores = {"a": torch.full((4,), 9.0), "b": torch.zeros(4)}
    alive = {name: torch.ones(4, dtype=torch.bool) for name in scores}
    outcome = channel_round(scores, {}, alive, Target(4, "global", {"a": 1, "b": 1}), share=0.0)
    assert [int(outcome.alive[n].sum()) for n in scores] == [3, 1]


def cut(space, **dead):
    """An outcome in which just these channels are dead."""
    alive = {n: torch.tensor([i not in dead.get(f"g{n}", ()) for i in range(len(m))]) for n, m in space.alive.items()}
    return Outcome(alive, alive, {n: torch.zeros_like(m) for n, m in alive.items()}, alive)


def test_channels_return_as_they_were_when_cut():
    model, graph, _ = net()
    space = ChannelSpace(graph, model, "channel", set(tensors(model)))
    assert space.total == 10
    before = {name: p.clone() for name, p in tensors(model).items()}
    masks = space.apply(cut(space, g0=[1]))
    assert all((p[~masks[name]] == 0).all() for name, p in tensors(model).items() if name in masks)
    with torch.no_grad():
        model[0].weight[2] += 1.0  # training goes on
    later = model[0].weight.clone()
    space.apply(cut(space, g0=[2]))  # 1 returns, 2 goes
    assert torch.equal(model[0].weight[1], before["0.weight"][1])
    assert torch.equal(model[1].bias[1], before["1.bias"][1])
    assert (model[0].weight[2] == 0).all()
    alive, stash = dict(space.alive), space.stash()
    again = ChannelSpace(graph, model, "channel", set(tensors(model)))
    again.restore(alive, stash)
    again.apply(cut(again))
    assert torch.equal(model[0].weight[2], later[2])
    assert torch.equal(model[3].weight, before["3.weight"])
    with pytest.raises(InvalidValue, match="another network"):
        again.restore({}, {})


def test_cut_channels_are_ranked_by_what_they_were():
    model, graph, _ = net()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([0.5, -2.0, 0.25, 1.0]))
    space = ChannelSpace(graph, model, "channel", set(tensors(model)))
    space.apply(cut(space, g0=[1]))
    assert space.weights()["0"].tolist() == [0.5, 2.0, 0.25, 1.0]


def test_statistics_come_from_the_first_neuron():
    model, graph, _ = net()
    space = ChannelSpace(graph, model, "channel", set(tensors(model)))
    found = {"0.weight": torch.arange(4.0), "3.weight": torch.arange(6.0), "7.weight": torch.zeros(3)}
    result = space.statistics(pair(graph), found)
    assert {name: v.tolist() for name, v in result.items()} == {"0": [0, 1, 2, 3], "3": [0, 1, 2, 3, 4, 5]}


def test_every_gate_of_resnet19_has_a_statistic():
    from spikeprune.zoo.registry import build

    model = build("resnet19-channels", T=1)
    graph = trace(model, torch.rand(1, 3, 32, 32), adapter=find_adapter(model))
    space = ChannelSpace(graph, model, "gate", set(tensors(model)))
    found = {n: torch.rand(p.shape[0]) for n, p in tensors(model).items() if p.dim() > 1}
    assert space.statistics(pair(graph), found).keys() == space.alive.keys()
    assert space.total == 4416


def test_a_group_with_an_excluded_layer_stays_whole():
    model, graph, _ = net()
    assert [g.name for g in ChannelSpace(graph, model, "channel", {"3.weight"}).groups] == ["3"]
    with pytest.raises(InvalidValue, match="no group of channels"):
        ChannelSpace(graph, model, "channel", set())


def test_new_candidates_of_channels_are_those_alive_before_also_under_a_budget_of_cost():
    scores = {"a": torch.tensor([4.0, 3.0, 2.0, 1.0])}
    growth = {"a": torch.tensor([0.0, 0.0, 1.0, 9.0])}
    alive = {"a": torch.tensor([True, True, True, False])}

    def regrown(candidates):
        outcome = channel_round(
            scores, growth, alive, Target(0, "global", {"a": 1}, budget=2.0),
            cost=lambda masks: float(masks["a"].sum()), share=0.5, candidates=candidates,
        )  # fmt: skip
        assert outcome.survivors["a"].tolist() == [True, False, False, False]
        return outcome.regrown["a"].tolist()

    assert regrown("all") == [False, False, False, True]  # the dead channel has the highest score
    assert regrown("new") == [False, False, True, False]
