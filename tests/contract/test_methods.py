"""What every registered method keeps to, chosen by its `needs` and `regrows`."""

import dataclasses
import io

import pytest
import torch
import torch.nn.functional as F

import spikeprune as sp
from nets import assert_same, batch, conv_net, sgd, train, weights_of
from spikeprune.core.errors import InvalidValue, MissingEvidence, UnknownName
from spikeprune.core.evidence import Evidence
from spikeprune.methods import registry
from spikeprune.methods.base import Method
from spikeprune.methods.registry import make_method, method_class, name_of, register, settings_of, source_of
from spikeprune.methods.synflow import Synflow

NAMES = sp.methods()
WHAT = {"weights", "grads", "membrane", "spikes", "state", "survivors", "flow", "curvature"}
SCHEDULE = sp.Cubic(to=0.8, end=12, every=4)


def loss(output, y):
    return F.cross_entropy(output.mean(0), y)


def pattern_of(name):
    """The keywords that a method needs beside its name: channel scores take a channel pattern."""
    return {"pattern": "channel"} if method_class(name).channels else {}


def one_shot(model, method, sparsity=0.7, **keywords):
    if isinstance(method, str):
        keywords = {**pattern_of(method), **keywords}
    return sp.prune(model, method, sparsity, data=[batch(1), batch(2)], loss=loss, **keywords)


@pytest.fixture(autouse=True)
def _few_cuts(monkeypatch):
    """SynFlow's 100 cuts would take most of the time."""
    monkeypatch.setattr(Synflow, "cuts_per_update", lambda self: 3)


def train_shown(pruner, model, optimizer, steps, first=1, after=lambda step: None):
    """`train`, in which a method that ranks by curvature observes the coming batch before each step."""

    def show(step):
        if "curvature" in pruner.method.needs:
            pruner.observe([batch(step)], loss)

    def then(step):
        after(step)
        show(step + 1)

    show(first)
    train(model, optimizer, steps, first=first, after=then)


def test_the_registry_is_not_empty():
    assert {"criticality", "magnitude", "random", "gradient", "dense"} <= set(NAMES)
    assert sorted(NAMES) == NAMES


@pytest.mark.parametrize("name", NAMES)
class TestEveryMethod:
    def test_is_a_frozen_dataclass_with_defaults_a_docstring_and_a_source(self, name):
        cls = method_class(name)
        method = cls()
        assert issubclass(cls, Method)
        with pytest.raises(dataclasses.FrozenInstanceError):
            method.anything = 1
        assert cls.__doc__
        assert source_of(name)
        assert name_of(method) == name
        assert method.needs <= WHAT
        assert set(settings_of(name)) == {f.name for f in dataclasses.fields(cls)}

    def test_settings_of_other_methods_are_ignored_by_name(self, name):
        assert make_method(name, no_such_setting=3) == method_class(name)()

    def test_regrowing_methods_check_their_share(self, name):
        if not method_class(name).regrows:
            assert "regrow" not in settings_of(name)
            return
        for regrow in (20, -0.1, 1.0):
            with pytest.raises(InvalidValue, match="regrow must be in") as caught:
                make_method(name, regrow=regrow)
            assert 20 <= len(str(caught.value)) <= 300
        for regrow in (0, 0.3, sp.Constant(0.3), sp.Linear(to=0.0, initial=0.3)):
            make_method(name, regrow=regrow)

    def test_scores_have_the_weights_shapes_and_are_numbers(self, name):
        generator = torch.Generator().manual_seed(0)
        weights = {"a": torch.randn(4, 3), "b": torch.randn(5, 4, 3, 3)}
        channels = None
        if method_class(name).channels:  # one number a channel, in place of one a weight
            weights = {"a": torch.rand(4), "b": torch.rand(5)}
            channels = {"scale": weights, "norm": weights, "slope": weights}
        traced = method_class(name)().observation().whole  # products of traces, with a column for the outputs' own
        statistics = {n: torch.rand(len(w), *([w.shape[1] + 1] if traced else [])) for n, w in weights.items()}
        evidence = Evidence(
            weights=weights,
            masks={n: torch.ones_like(w, dtype=torch.bool) for n, w in weights.items()},
            generator=generator,
            grads={n: torch.randn_like(w) for n, w in weights.items()},
            statistics=statistics,
            channels=channels,
            flow={n: torch.rand_like(w) for n, w in weights.items()},
            curvature={n: torch.randn_like(w) for n, w in weights.items()},
        )
        method = make_method(name)
        scores = method.score(evidence)
        assert {n: s.shape for n, s in scores.items()} == {n: w.shape for n, w in weights.items()}
        assert all(torch.isfinite(s).all() for s in scores.values())
        if method.regrows:
            assert all(s.shape == weights[n].shape for n, s in method.regrow_score(evidence).items())

    def test_the_target_is_met_to_the_weight_at_every_event_that_cuts(self, name):
        model = conv_net()
        optimizer = sgd(model)
        pruner = sp.Pruner(model, name, SCHEDULE, **pattern_of(name)).attach(optimizer)
        if name == "dense":
            assert pruner.preview() == ()
        pruner.trace(batch(1)[0])
        expected = {e.step: e.kept for e in pruner.preview()}

        def after(step):
            if step in expected and (pruner.rounds[-1]["cut"] or step == max(expected)):
                assert pruner.alive == expected[step]
            assert all(not p[~pruner.masks[n]].any() for n, p in model.named_parameters() if n in pruner.masks)

        train_shown(pruner, model, optimizer, 13, after=after)
        assert [r["step"] for r in pruner.rounds] == list(expected)
        if pruner.method.regrows:
            assert pruner.rounds[0]["regrown"] > 0
        else:
            assert all(r["regrown"] == r["rescued"] == 0 for r in pruner.rounds)

    def test_pruning_again_revives_nothing_unless_it_regrows(self, name):
        if method_class(name).regrows or method_class(name).acts:
            return  # what acts in every step may bring weights back by its own rule
        model = conv_net()
        optimizer = sgd(model)
        pruner = sp.Pruner(model, name, SCHEDULE, **pattern_of(name)).attach(optimizer)
        pruner.trace(batch(1)[0])
        before = dict(pruner.masks)

        def after(step):
            for n, mask in pruner.masks.items():
                assert (mask <= before[n]).all()
                before[n] = mask.clone()

        train_shown(pruner, model, optimizer, 13, after=after)

    def test_same_seed_same_result(self, name):
        results = []
        for _ in range(2):
            model = conv_net()
            results.append((dict(one_shot(model, name, seed=4)), weights_of(model)))
        assert_same(results[0][0], results[1][0])
        assert_same(results[0][1], results[1][1])

    def test_one_shot_keeps_the_count_and_zeroes_the_rest(self, name):
        model = conv_net()
        masks = one_shot(model, name)
        if method_class(name).channels:
            assert int(masks["1.weight"].sum() + masks["5.weight"].sum()) == 3  # floor(10 * .3) channels
        else:
            assert masks.alive == (768 if name == "dense" else 230)  # floor(768 * .3) = 230.4
        assert all(not p[~masks[n]].any() for n, p in model.named_parameters() if n in masks)

    def test_missing_evidence_is_named(self, name):
        method = make_method(name)
        if not method.channels and (
            name == "dense" or not ({"grads", "membrane", "spikes", "flow", "curvature"} & method.needs)
        ):
            assert sp.prune(conv_net(), method, 0.7).total == 768
            return
        with pytest.raises(MissingEvidence, match="data=") as caught:
            sp.prune(conv_net(), method, 0.7, **pattern_of(name))
        assert 20 <= len(str(caught.value)) <= 300
        if {"grads", "curvature"} & method.needs:
            with pytest.raises(MissingEvidence, match="loss="):
                sp.prune(conv_net(), method, 0.7, data=[batch(1)], **pattern_of(name))

    def test_channels_permuted_are_masked_permuted(self, name):
        # Output channels of the first conv in another order, and what reads them with it: the same masks, permuted.
        if name in ("dense", "random", "random-prune", "set", "anti-criticality", "bn-scale"):
            return  # nothing is masked, or a draw or the ties within a filter's single score go by place
        order = torch.tensor([2, 0, 3, 1])
        model, other = conv_net(), conv_net()
        with torch.no_grad():
            for key, value in model.state_dict().items():
                if key.startswith(("0.", "1.")) and value.ndim:
                    other.state_dict()[key].copy_(value[order])
                elif key == "4.weight":
                    other.state_dict()[key].copy_(value[:, order])
        # Sums in another order differ in the last bit, so single masks near a tie may: compare as a share.
        a, b = one_shot(model, name), one_shot(other, name)
        moved = {"0.weight": a["0.weight"][order], "4.weight": a["4.weight"][:, order]}
        moved |= {"8.weight": a["8.weight"]} if "8.weight" in a else {}
        same = sum(int((moved[n] == b[n]).sum()) for n in moved)
        assert same >= sum(m.numel() for m in moved.values()) - 8

    def test_a_saved_state_goes_on(self, name):
        model = conv_net()
        optimizer = sgd(model)
        pruner = sp.Pruner(model, name, SCHEDULE, **pattern_of(name)).attach(optimizer)
        train_shown(pruner, model, optimizer, 6)
        states = [weights_of(model), optimizer.state_dict(), pruner.state_dict()]
        states = torch.load(_saved(states), weights_only=True)
        train_shown(pruner, model, optimizer, 7, first=7)
        again = conv_net()
        other = sgd(again)
        resumed = sp.Pruner(again, name, SCHEDULE, **pattern_of(name)).attach(other)
        again.load_state_dict(states[0])
        other.load_state_dict(states[1])
        resumed.load_state_dict(states[2])
        train_shown(resumed, again, other, 7, first=7)
        assert_same(dict(resumed.masks), dict(pruner.masks))
        assert_same(weights_of(again), weights_of(model))


def _saved(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return buffer


def test_unknown_names_offer_the_nearest():
    with pytest.raises(UnknownName, match="did you mean 'criticality'"):
        sp.Pruner(conv_net(), "critcality", SCHEDULE)


@pytest.fixture
def _registry_restored(monkeypatch):
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    monkeypatch.setattr(registry, "_SOURCES", dict(registry._SOURCES))


@dataclasses.dataclass(frozen=True)
class Smallest(Method):
    """A third party's: keeps the smallest weights."""

    def score(self, evidence):
        return {name: -weight.abs() for name, weight in evidence.weights.items()}


@pytest.mark.usefixtures("_registry_restored")
def test_a_third_partys_method_appears_and_works():
    register("smallest", source="nobody")(Smallest)
    assert "smallest" in sp.methods()
    masks = one_shot(conv_net(), "smallest")
    whole = dict(conv_net().named_parameters())
    assert masks.alive == 230
    kept = torch.cat([whole[n][m].abs() for n, m in masks.items()])
    cut = torch.cat([whole[n][~m].abs() for n, m in masks.items()])
    assert kept.max() <= cut.min()
    with pytest.raises(InvalidValue, match="two methods are named 'magnitude'"):
        register("magnitude", source="nobody")(Smallest)


@pytest.mark.usefixtures("_registry_restored")
def test_a_method_from_an_entry_point_appears(monkeypatch):
    entry = type("Entry", (), {"name": "toy", "value": "toy_package:Smallest", "load": lambda self: Smallest})()
    monkeypatch.setattr(registry.importlib.metadata, "entry_points", lambda group: [entry])
    registry._load_all.cache_clear()
    try:
        assert "toy" in sp.methods()
        assert source_of("toy") == "toy_package:Smallest"
    finally:
        monkeypatch.undo()
        registry._load_all.cache_clear()
    assert "toy" not in sp.methods()
