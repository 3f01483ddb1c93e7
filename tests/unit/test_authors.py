"""Methods against numbers that came out of their authors' code (tests/authors/), step by step in float64."""

import json

import pytest

from authors import (
    admm,
    ch3_l3,
    criticality,
    deep_r,
    dpap,
    early_bird,
    early_time,
    grad_r,
    granet,
    grasp,
    imp,
    page,
    resnet19,
    rigl,
    sd_snn,
    snip,
    stds,
    synflow,
    upf,
)
from spikeprune.methods import names
from spikeprune.methods.registry import method_class


def test_criticality_equals_the_authors_code_mask_for_mask_over_20_updates():
    kept = json.loads(criticality.FILE.read_text())
    assert kept["setting"] == criticality.SETTING
    mine = criticality.ours()
    assert len(kept["theirs"]) == 20
    assert [entry["masks"] for entry in mine] == [entry["masks"] for entry in kept["theirs"]]
    for entry, theirs in zip(mine, kept["theirs"], strict=True):
        assert entry["kept"] == theirs["kept"]
        assert entry["loss"] == pytest.approx(theirs["loss"], abs=1e-7)
        assert entry["weights"] == pytest.approx(theirs["weights"], abs=1e-6)


def test_the_exact_rule_is_another_one():
    # The comparison can fail: exact counts part from the authors' in the first mask update.
    theirs = json.loads(criticality.FILE.read_text())["theirs"]
    assert criticality.differing(criticality.ours("exact", updates=1), theirs[:1]) == [1]


@pytest.mark.parametrize(
    "side",
    [
        granet,
        stds,
        admm,
        early_bird,
        snip,
        ch3_l3,
        upf,
        imp,
        grad_r,
        deep_r,
        rigl,
        early_time,
        synflow,
        grasp,
        dpap,
        sd_snn,
    ],
    ids=lambda side: side.FILE.stem,
)
def test_masks_equal_those_of_the_authors_code(side):
    kept = json.loads(side.FILE.read_text())
    assert kept["setting"] == side.SETTING
    mine = side.ours()
    assert len(kept["theirs"]["updates"]) >= 3
    for number, (a, b) in enumerate(zip(mine["updates"], kept["theirs"]["updates"], strict=True), 1):
        assert a["kept"] == b["kept"], number
        assert a["masks"] == b["masks"], number
        assert a["weights"] == pytest.approx(b["weights"], abs=1e-6)
    rest = {key: value for key, value in kept["theirs"].items() if key != "updates"}
    assert {key: mine[key] for key in rest} == rest


def test_resnet19_equals_the_authors_network_on_the_same_weights():
    # Its mask updates take half a minute, so they are compared by hand: python tests/authors/resnet19.py CHECKOUT
    kept = json.loads(resnet19.FILE.read_text())
    assert kept["setting"] == resnet19.SETTING
    assert resnet19.logits() == pytest.approx(kept["theirs"]["logits"], abs=1e-7)
    assert kept["equal"] == [True] * 3


def test_the_page_about_authors_code_is_what_the_numbers_say():
    assert page.PAGE.read_text(encoding="utf-8") == page.text()  # python tests/authors/page.py
    assert set(page.COMPARED) | set(page.OTHERS) == set(names())
    assert not set(page.COMPARED) & set(page.OTHERS)
    for name, said in page.OTHERS.items():
        if said == page.DIFFERS:
            assert "code" in (method_class(name).__doc__ or ""), name  # the docstring tells what differs


def test_dead_weights_are_exactly_0_when_a_mask_update_ranks():
    # Warm momentum moves dead weights in the optimizer's own update; the evidence must not show it.
    import spikeprune as sp
    from nets import conv_net, sgd, train

    model = conv_net()
    optimizer = sgd(model)
    method = sp.Criticality(momentum="warm", regrow=sp.Constant(0.2))
    pruner = sp.Pruner(model, method, sp.Cubic(to=0.9, end=12, every=4)).attach(optimizer)
    seen = []
    original = pruner._updater.evidence

    def spy(update, **keywords):
        evidence = original(update, **keywords)
        seen.append(max(float((w * ~evidence.masks[n]).abs().max()) for n, w in evidence.weights.items()))
        return evidence

    pruner._updater.evidence = spy
    train(model, optimizer, 12)
    assert seen == [0.0] * 3
    momentum = [
        optimizer.state[p]["momentum_buffer"][~pruner.masks[n]]
        for n, p in model.named_parameters()
        if n in pruner.masks
    ]
    assert any(bool(m.abs().max() > 0) for m in momentum if m.numel())  # so the case is really there
