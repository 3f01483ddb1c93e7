"""The authors' rule, mask for mask, against a naive re-implementation of its description; both rules' invariants."""

import pytest
import torch
from spikingjelly.activation_based import functional

import spikeprune as sp
from nets import batch, conv_net, sgd, train
from spikeprune.core.errors import InvalidValue
from spikeprune.core.mask import unpack
from spikeprune.methods.shared.authors import authors_update

FREE = ("0.weight", "4.weight")  # all but the classifier


def naive_authors(weights, channel_scores, sparsity, r):
    """Their event in loops over plain lists; `weights` name -> tensor, the last one the classifier."""
    total = sum(w.numel() for w in weights.values())
    K = int(total * (1 - sparsity))
    everything = sorted((abs(x) for w in weights.values() for x in w.flatten().tolist()), reverse=True)
    t0 = everything[K - 1]
    classifier = list(weights)[-1]
    mask = {classifier: [abs(x) > t0 for x in weights[classifier].flatten().tolist()]}
    K1 = K - sum(mask[classifier])
    G = int(r * K1)
    free = sorted((abs(x) for n in FREE for x in weights[n].flatten().tolist()), reverse=True)
    t1 = free[K1 - G - 1]
    growth = {}
    for n in FREE:
        values = weights[n].flatten().tolist()
        per_filter = len(values) // len(channel_scores[n])
        mask[n] = [abs(x) > t1 for x in values]
        growth[n] = [float(channel_scores[n][i // per_filter]) * (not alive) for i, alive in enumerate(mask[n])]
    cut = sorted((g for n in FREE for g in growth[n]), reverse=True)[G - 1]
    for n in FREE:
        mask[n] = [alive or g >= cut for alive, g in zip(mask[n], growth[n], strict=True)]
    return {n: torch.tensor(mask[n]).view(w.shape) for n, w in weights.items()}, K


def test_masks_equal_the_naive_rule_at_every_event():
    model = conv_net()
    optimizer = sgd(model)
    method = sp.Criticality(regrow=sp.Constant(0.2), curve="value", surrogate="dspike", rule="authors")
    schedule = sp.Cubic(to=0.9, end=16, every=4)
    pruner = sp.Pruner(model, method, schedule).attach(optimizer)
    seen = []
    original = pruner._updater.evidence

    def spy(event, **keywords):
        evidence = original(event, **keywords)
        seen.append((event, {n: w.clone() for n, w in evidence.weights.items()}, dict(evidence.statistics or {})))
        return evidence

    pruner._updater.evidence = spy
    got = []
    train(model, optimizer, 16, after=lambda step: got.append(pruner.masks) if step % 4 == 0 else None)
    overshoot = []
    for (event, weights, statistics), masks in zip(seen, got, strict=True):
        scores = {n: statistics[n] for n in FREE}
        assert all(s.ndim == 1 for s in scores.values())
        expected, K = naive_authors(weights, scores, event.target, 0.2)
        assert all(torch.equal(masks[n], expected[n]) for n in masks)
        overshoot.append(masks.alive - K)
    assert len(overshoot) == 4
    assert max(overshoot) > 0  # `>=` let a filter's tied weights in
    assert all(a != 0 for a in overshoot)


def test_overshoot_by_ties_worked_by_hand():
    # Weights 1..8 in two filters of four, scores .9 and .5, keep 4 of 8, a quarter of it regrown: G = 1.
    #   t0 = 5: reference 6, 7, 8 (`>` keeps one less);  K1 = 4, t1 = the third largest = 6: survivors 7, 8
    #   dead of filter 0 (all four) score .9: the cut is .9 and all four come in: alive 6 where 4 were wanted.
    weights = {"w": torch.arange(1.0, 9.0).view(2, 4)}
    scores = {"w": torch.tensor([0.9, 0.5]).view(2, 1).expand(2, 4)}
    outcome = authors_update(weights, scores, 4, 0.25)
    assert outcome.reference["w"].tolist() == [[False] * 4, [False, True, True, True]]
    assert outcome.survivors["w"].tolist() == [[False] * 4, [False, False, True, True]]
    assert outcome.alive["w"].tolist() == [[True] * 4, [False, False, True, True]]


def test_a_score_below_zero_never_doubles_a_kept_weight():
    # In their code a cut of 0 or less admits kept weights a second time; the mask then holds 2. Ours stays a mask.
    weights = {"w": torch.arange(1.0, 9.0).view(2, 4)}
    scores = {"w": torch.tensor([-0.9, -0.5]).view(2, 1).expand(2, 4)}
    outcome = authors_update(weights, scores, 4, 0.25)
    assert outcome.alive["w"].dtype is torch.bool
    assert not (outcome.regrown["w"] & outcome.survivors["w"]).any()


def test_the_authors_rule_is_for_their_setting_only():
    method = sp.Criticality(rule="authors")
    for keywords in ({"allocate": "erk"}, {"pattern": "1:2"}, {"budget": "macs"}):
        with pytest.raises(InvalidValue, match="rule='authors'") as caught:
            sp.Pruner(conv_net(), method, sp.OneShot(0.5), **keywords)
        assert 20 <= len(str(caught.value)) <= 300


def test_the_score_is_that_of_the_events_own_forward_before_its_update():
    # The statistic of the Pruner against one written out here, on the model as it was at the forward of step 2.
    model = conv_net()
    optimizer = sgd(model)
    pruner = sp.Pruner(model, sp.Criticality(), sp.OneShot(0.5, begin=1)).attach(optimizer)
    seen = {}
    original = pruner._updater.evidence

    def spy(event, **keywords):
        evidence = original(event, **keywords)
        seen.update({n: s.clone() for n, s in evidence.statistics.items()})
        return evidence

    pruner._updater.evidence = spy
    train(model, optimizer, 2)
    twin = conv_net()
    train(twin, sgd(twin), 1)
    x, expected = batch(2)[0], {}
    for conv, neuron in ((0, 2), (4, 6)):
        hidden = twin[:neuron](x)
        functional.reset_net(twin)
        v, potentials = torch.zeros_like(hidden[0]), []
        for frame in hidden:
            v = v / 2 + frame / 2
            potentials.append(1 / (1 + (torch.pi * (v - 1)) ** 2))
            v = v * (v < 1)
        expected[f"{conv}.weight"] = torch.stack(potentials).mean(0).flatten(2).amax(2).mean(0)
    for name, score in expected.items():
        torch.testing.assert_close(seen[name], score)


@pytest.mark.parametrize("rule", ["exact", "authors"])
@pytest.mark.parametrize("unit", ["neuron", "synapse"])
def test_regrown_and_kept_never_overlap_and_regrown_start_at_zero(rule, unit):
    model = conv_net()
    optimizer = sgd(model)
    method = sp.Criticality(regrow=sp.Constant(0.3), rule=rule, unit=unit)
    pruner = sp.Pruner(model, method, sp.Cubic(to=0.8, end=12, every=4)).attach(optimizer)
    parameters = dict(model.named_parameters())

    def after(step):
        if step not in (4, 8, 12):
            return
        for name, bits in pruner.state_dict()["regrown"].items():
            regrown = unpack(bits, tuple(parameters[name].shape))
            assert (regrown <= pruner.masks[name]).all()
            assert not parameters[name][regrown].any()
            assert not regrown.any() or name in FREE  # the classifier is never regrown

    train(model, optimizer, 12, after=after)
    assert all(r["regrown"] > 0 for r in pruner.rounds)
