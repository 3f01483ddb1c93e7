"""DPAP and SD-SNN, worked by hand: traces of spikes that go on over mask updates, survival, and ranges of weights."""

import math

import pytest
import torch
from torch import nn

import spikeprune as sp
from nets import batch, conv_net, sgd, train
from spikeprune.core.errors import InvalidValue, MissingEvidence
from spikeprune.core.evidence import Evidence
from spikeprune.core.statistic import TraceProducts
from spikeprune.methods.base import Observation, Training
from spikeprune.methods.dpap import Dpap
from spikeprune.methods.sd_snn import SdSnn
from spikeprune.methods.shared.quantile import quantile

# ---- DPAP ---------------------------------------------------------------------------------------------------------


def fed(sequences):
    """Two time steps of one output (spikes 1, 0) and two inputs (spikes 1 0, then 1 1), so often."""
    statistic = TraceProducts(lambda u: (u > 0).to(u), 0.5, last=True)
    for _ in range(sequences):
        statistic.begin()
        statistic.step(torch.tensor([[1.0]]), torch.tensor([[1.0, 0.0]]))
        statistic.step(torch.tensor([[-1.0]]), torch.tensor([[1.0, 1.0]]))
    return statistic


def test_traces_and_their_products_worked_by_hand():
    # Traces: inputs 0.5 (1 0) + (1 1) = (1.5 1), output 0.5. Over T = 2: (0.75 0.5) and 0.25.
    # No sequence came before, so the threshold is 0: 0.25^2 (0.75 0.5).
    assert fed(1).result().tolist() == [[0.25**2 * 0.75, 0.25**2 * 0.5, 0.25]]
    # The second time the threshold is 0.25, so the product is 0, and the mean is half of the above.
    assert fed(2).result().tolist() == [[0.25**2 * 0.375, 0.25**2 * 0.25, 0.25]]


def test_the_trace_of_the_output_decays_and_gathers():
    statistic = TraceProducts(lambda u: (u > 0).to(u), 0.5, last=True)
    for spike in (1.0, 1.0, -1.0):
        statistic.step(torch.tensor([[spike]]), torch.tensor([[1.0]]))
    # Output: 1, then 0.5 + 1 = 1.5, then 0.75. Input: 1, 1.5, 1.75. Over T = 3: 0.25 and 1.75 / 3.
    assert statistic.result().flatten().tolist() == pytest.approx([0.25**2 * 1.75 / 3, 0.25])


def test_maps_are_summed_and_a_restored_total_keeps_the_threshold():
    statistic = TraceProducts(lambda u: u, 0.0, last=False)
    statistic.step(torch.ones(1, 3, 2, 2), torch.ones(1, 5, 4, 4))
    assert torch.equal(statistic.result(), torch.tensor([[4.0 * 4 * 16] * 5 + [4.0]] * 3, dtype=torch.float64))
    again = fed(0)
    again.add(*((s := fed(1)).result() * s.count, s.count))
    again.step(torch.tensor([[1.0]]), torch.tensor([[1.0, 0.0]]))
    again.step(torch.tensor([[-1.0]]), torch.tensor([[1.0, 1.0]]))
    assert torch.equal(again.result(), fed(2).result())
    with pytest.raises(MissingEvidence, match="the rule needs the layer's input"):
        again.step(torch.ones(1, 1))
    with pytest.raises(MissingEvidence, match="no spike was recorded before this mask update"):
        fed(0).result()


def evidence(statistic, weight, memory=None, number=1):
    masks = {"a": torch.ones_like(weight, dtype=torch.bool)}
    return Evidence({"a": weight}, masks, statistics=statistic, memory=memory or {}, number=number)


def test_survival_of_filters_worked_by_hand():
    # Sums of bcm 0 5 10 / 10 and traces 1 2 3: normed 0 0.5 1 and 0 0.5 1, so activities 0 0.25 1.
    # Their 75 % quantile is 0.625: scaled 0 0.4 1, times 2 less 0.65: -0.65 0.15 1.35, and 5 more where above 0.
    found = torch.tensor([[0.0, 0.0, 1.0], [2.0, 3.0, 2.0], [4.0, 6.0, 3.0]], dtype=torch.float64)
    memory = Dpap().remember(evidence({"a": found}, torch.randn(3, 2, 3, 3)))
    first = [9.99 - 0.65, 9.99 + 5.15, 9.99 + 6.35]
    assert memory["neuron"]["a"].tolist() == pytest.approx(first)
    # Mask update 13 is the first whose changes count e^-1.
    memory = Dpap().remember(evidence({"a": found}, torch.randn(3, 2, 3, 3), memory, number=13))
    assert memory["neuron"]["a"].tolist() == pytest.approx(
        [s * 0.999 + d * math.exp(-1) for s, d in zip(first, (-0.65, 5.15, 6.35), strict=True)]
    )
    scores = Dpap().score(evidence({"a": found}, torch.randn(3, 2, 3, 3), memory))
    assert torch.equal(scores["a"], memory["neuron"]["a"].view(3, 1, 1, 1).expand(3, 2, 3, 3))


def test_a_synapse_of_a_matrix_is_as_good_as_the_worse_of_itself_and_its_neuron():
    found = torch.tensor([[0.0, 8.0, 1.0], [4.0, 6.0, 2.0]], dtype=torch.float64)
    seen = evidence({"a": found}, torch.randn(2, 2))
    memory = Dpap().remember(seen)
    # bcm 0 8 4 6: the 75 % quantile is 6.5. Neuron 0 has the smaller sum and trace: activity 0.
    assert memory["synapse"]["a"][0, 0] == pytest.approx(9.99 - 1.5)
    assert memory["synapse"]["a"][1, 0] == pytest.approx(9.99 + 8 / 6.5 - 1.5)
    assert Dpap().score(seen)["a"][0].tolist() == pytest.approx([9.99 - 1.5] * 2)
    assert Dpap().score(seen)["a"][1].tolist() == pytest.approx([9.99 + 8 / 6.5 - 1.5, 9.99 + 12 / 6.5 - 1.5 + 2])


def test_traces_are_kept_over_mask_updates_and_by_each_rank_its_part():
    model = conv_net()
    optimizer = sgd(model)
    pruner = sp.Pruner(model, "dpap", sp.Cubic(to=0.5, end=6, every=2)).attach(optimizer)
    train(model, optimizer, 3)  # 4 samples a step, and a mask update after the second
    totals = pruner._observer.totals()
    assert {name: count for name, (_, count) in totals.items()} == {"0.weight": 12.0, "4.weight": 12.0}
    whole = pruner._observer.statistics(lambda value: value.clone())
    again = pruner._observer.statistics(lambda value: value.mul_(2))  # as if two ranks had seen the same
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    for name, (total, count) in pruner._observer.totals().items():
        assert count == 12.0
        assert torch.equal(total, totals[name][0])


def test_a_layer_without_a_neuron_is_ranked_by_its_weights():
    masks = sp.prune(conv_net(), "dpap", 0.5, data=[batch(1), batch(2)])
    whole = conv_net()[8].weight.abs()
    kept = masks["8.weight"]
    assert 0 < int(kept.sum()) < kept.numel()
    assert whole[kept].min() >= whole[~kept].max()


def test_what_dpap_lacks_is_named():
    with pytest.raises(InvalidValue, match="dpap takes a decay of traces in"):
        Dpap(decay=1.0)
    with pytest.raises(MissingEvidence, match="dpap needs the spikes of the network; pass data="):
        Dpap().score(evidence(None, torch.randn(2, 2)))
    with pytest.raises(InvalidValue, match=r"'a' is \[2, 3\] with 4 outputs; pass exclude=\['a'\]"):
        Dpap().score(evidence({"a": torch.rand(4, 3)}, torch.randn(2, 3)))
    with pytest.raises(InvalidValue, match="whole=True goes on from step to step"):
        Observation(whole=True, measure="after")
    with pytest.raises(InvalidValue, match="dpap works by single weights"):
        sp.Pruner(conv_net(), "dpap", sp.OneShot(0.5), pattern="channel")


def test_quantiles_are_those_of_torch():
    x = torch.randn(7, 5)
    for share in (0.0, 0.3, 0.75, 1.0):
        assert float(quantile(x, share)) == pytest.approx(float(x.quantile(share)), abs=1e-6)


# ---- SD-SNN -------------------------------------------------------------------------------------------------------


class Layer:
    """One weight under SD-SNN; each `event` is a step that sets it, with the mask update after it."""

    def __init__(self, method, mask):
        self.method, self.mask, self.memory = method, mask, {}

    def event(self, values):
        weight = torch.tensor(values) if not isinstance(values, torch.Tensor) else values.clone()
        training = Training({"w": weight}, {}, {"w": self.mask}, self.memory, {}, 0.5, 0.5, lambda scores: {})
        assert self.method.after_update(training) is None
        assert not weight[~self.mask].any()
        self.cuts = self.method.at_event(training)
        return weight

    def of(self, kind):
        return self.memory[kind]["w"].flatten().tolist()


def test_ranges_stretch_and_shrink_as_worked_by_hand():
    layer = Layer(SdSnn(patience=2), torch.ones(1, 4).bool())
    layer.event([[1.0, -2.0, 0.5, 0.1]])
    assert layer.of("high") == [1.0] * 4
    assert layer.of("low") == [-1.0] * 4
    layer.event([[1.2, -2.0, 0.4, 0.1]])
    layer.event([[1.5, -2.0, 0.3, 0.1]])
    assert layer.of("high") == [1.0] * 4  # seen once on end, after a first time
    weight = layer.event([[2.0, -2.0, 0.2, 0.1]])
    # The first was beyond by 0.5 and 1: its end moves by 1.5 / 2. The second by -1 and -1. The third faded twice.
    assert layer.of("high") == [1.75, 1.0, 0.75, 1.0]
    assert layer.of("low") == [-1.0, -2.0, -0.75, -1.0]
    assert weight.tolist() == [[1.75, -2.0, pytest.approx(0.2), pytest.approx(0.1)]]  # held since this update
    assert not layer.cuts
    weight = layer.event([[9.0, -9.0, 0.2, 0.1]])
    assert weight.tolist() == [[1.75, -2.0, pytest.approx(0.2), pytest.approx(0.1)]]


def test_a_dead_weight_returns_when_it_pushes_for_long():
    mask = torch.tensor([[False, True], [True, True]])
    layer = Layer(SdSnn(patience=1), mask)
    back = [layer.event([[0.9, 0.5], [-0.2, 1.0]])[0, 0].item() for _ in range(6)]
    # Growth looks from the fourth on, and 0.9 is above the 61 % quantile of 0.9, 0.5, -0.2, 1: on end once, then twice.
    assert back == [0, 0, 0, 0, 0, pytest.approx(0.9)]
    assert layer.cuts
    assert layer.of("open") == [True] * 4
    assert layer.of("once cut") == [True, False, False, False]
    weights = {"w": torch.ones(2, 2)}
    scores = layer.method.score(Evidence(weights, {"w": mask}, memory=layer.memory))["w"]
    assert scores[0, 0] > 1 >= scores[0, 1] == scores.flatten()[1]
    assert scores[1, 0] == scores[1, 1]


def test_a_dead_kernel_returns_as_a_whole_and_a_weak_one_stays():
    mask = torch.ones(2, 2, 1, 3).bool()
    mask[0, 0] = mask[1, 1] = False
    layer = Layer(SdSnn(patience=1), mask)
    weight = torch.full((2, 2, 1, 3), 0.5)
    weight[0, 0], weight[1, 1] = torch.tensor([0.9, 0.9, -0.1]), 0.01
    weight[0, 1, 0, 0] = 1.0
    weight[1, 0] = -0.5
    for _ in range(5):
        layer.event(weight)
        assert torch.equal(layer.memory["open"]["w"], mask)
    layer.event(weight)
    assert layer.memory["open"]["w"].all(3)[:, :, 0].tolist() == [[True, True], [True, False]]


def test_filters_of_narrow_ranges_go_first_and_early_updates_leave_the_masks_alone():
    model = nn.Sequential(nn.Linear(3, 4, bias=False))
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    pruner = sp.Pruner(model, sp.SdSnn(1), sp.Cubic(to=0.5, end=6, every=1)).attach(optimizer)
    for _ in range(6):
        model(torch.ones(2, 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():  # the first filter fades, so its range shrinks
            model[0].weight[0] *= 0.5
    assert [r.cut for r in pruner.rounds] == [False] * 3 + [True] * 3
    assert pruner.alive == 6
    assert not pruner.masks["0.weight"][0].any()


def test_one_shot_goes_by_magnitude_and_patience_is_checked():
    found = [dict(sp.prune(conv_net(), name, 0.5)) for name in ("sd-snn", "magnitude")]
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    with pytest.raises(InvalidValue, match="sd-snn takes a patience of 1 or more mask updates, got 0"):
        SdSnn(patience=0)
