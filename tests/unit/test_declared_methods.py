"""What a method declares: a name that nobody would ask for is an error when the class or the Pruner is made."""

import dataclasses
import importlib
import inspect
from typing import ClassVar

import pytest

import spikeprune as sp
from nets import conv_net
from spikeprune.core.errors import InvalidValue
from spikeprune.methods import base
from spikeprune.methods.base import MagnitudeRegrowth, Method, Observation, Regrowth, magnitude, uniform
from spikeprune.methods.registry import RecipeHints, hints_of, settings_of
from spikeprune.methods.shared.described import meanings_of

SCHEDULE = sp.Cubic(to=0.8, end=12, every=4)


def make(**names):
    """A frozen method with these names in its class; a pair is (annotation, default)."""
    body = {name: value[1] if isinstance(value, tuple) else value for name, value in names.items()}
    body["__annotations__"] = {name: value[0] for name, value in names.items() if isinstance(value, tuple)}
    body.setdefault("score", lambda self, evidence: magnitude(evidence))
    return dataclasses.dataclass(frozen=True)(type("Mine", (Method,), body))


@pytest.mark.parametrize(
    ("names", "nearest"),
    [
        ({"momentun": (str, "warm")}, "momentum"),
        ({"candidate": (str, "new")}, "candidates"),
        ({"start_valu": (str, "last")}, "start_value"),
        ({"batchs": (int, 2)}, "batches"),
        ({"within_layer": (ClassVar[bool], True)}, "within_layers"),
        ({"need": frozenset({"weights", "grads"})}, "needs"),
        ({"regrow_scores": lambda self, evidence: uniform(evidence)}, "regrow_score"),
        ({"before_updates": lambda self, training: None}, "before_update"),
    ],
)
def test_a_misspelt_name_is_refused_with_the_nearest(names, nearest):
    with pytest.raises(InvalidValue, match=f"did you mean '{nearest}'") as caught:
        make(**names)
    assert 20 <= len(str(caught.value)) <= 300


@pytest.mark.parametrize(
    ("name", "declaration"),
    [
        ("regrow_score", "regrows = True"),
        ("survivors", "within_layers = True"),
        ("growth", "within_layers = True"),
        ("before_update", "acts = True"),
        ("after_update", "acts = True"),
        ("softening", r"needs = frozenset\({'weights', 'curvature'}\)"),
        ("statistic", r"needs = frozenset\({'weights', 'membrane'}\)"),
    ],
)
def test_a_method_that_is_overridden_in_vain_is_refused(name, declaration):
    method = make(**{name: lambda self, *_: {}})()
    with pytest.raises(
        InvalidValue, match=f"Mine has its own {name}, which would never be called: declare {declaration}"
    ):
        sp.Pruner(conv_net(), method, SCHEDULE)


def test_names_of_the_methods_own_are_free():
    method = make(power=(float, 0.5), tau=(float, 2.0), _table=None)()
    assert sp.Pruner(conv_net(), method, SCHEDULE).method is method


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"candidates": (str, "new")}, "has the setting 'candidates' but does not hand it over.*regrows = True"),
        ({"batches": (int, 3)}, "'batches' but does not hand it over.*`observation`"),
        (
            {"regrow": (float, 0.3), "regrows": (ClassVar[bool], True), "regrowth": lambda self: Regrowth(0.2)},
            "'regrow' but does not hand it over.*`regrowth`",
        ),
        ({"regrow": (float, 0.3), "regrows": (ClassVar[bool], True)}, "Mine regrows, but does not say how"),
    ],
)
def test_a_setting_that_nobody_would_read_is_refused(names, message):
    with pytest.raises(InvalidValue, match=message) as caught:
        sp.Pruner(conv_net(), make(**names)(), SCHEDULE)
    assert 20 <= len(str(caught.value)) <= 300


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"momentum": (ClassVar[str], "warm")}, "momentum is no field"),
        ({"defaults": (ClassVar[dict], {"start": "random"})}, "belongs to recipes.*RecipeHints"),
        ({"schedule": lambda self, sparsity, steps, per_epoch: None}, "belongs to recipes"),
    ],
)
def test_what_a_class_may_not_declare(names, message):
    with pytest.raises(InvalidValue, match=message) as caught:
        make(**names)
    assert 20 <= len(str(caught.value)) <= 300


def test_a_misspelt_keyword_in_the_declaration_is_an_error():
    with pytest.raises(TypeError, match="start_valu"):
        Regrowth(0.2, start_valu="kept")
    with pytest.raises(TypeError, match="batchs"):
        Observation(batchs=2)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"regrow": "0.2"}, "regrow must be in"),
        ({"regrow": True}, "regrow must be in"),
        ({"regrow": 0.2, "rule": "exakt"}, "rule must be one of"),
        ({"regrow": 0.2, "candidates": "old"}, "candidates must be one of"),
    ],
)
def test_regrowth_checks_its_settings(wrong, message):
    with pytest.raises(InvalidValue, match=message):
        Regrowth(**wrong)


def test_the_five_settings_stand_once():
    shared = {f.name for f in dataclasses.fields(MagnitudeRegrowth)}
    for cls in (sp.Criticality, sp.Random, sp.Gradient):
        assert not shared & set(inspect.get_annotations(cls))
        assert shared <= {f.name for f in dataclasses.fields(cls)}


def test_hints_for_recipes_stand_beside_the_class():
    assert hints_of("rigl").defaults["start"] == "random"
    assert hints_of("imp-et").search_T is not None
    assert hints_of(sp.Magnitude()) == RecipeHints() == hints_of(make()())


def test_the_old_name_of_a_site_still_works_and_warns():
    with pytest.warns(DeprecationWarning, match="methods.base.Layer is now Site"):
        assert importlib.import_module("spikeprune.methods.base").Layer is base.Site


def test_a_state_that_wrote_the_settings_in_another_order_is_taken():
    pruner = sp.Pruner(conv_net(), sp.Random(regrow=sp.Constant(0.2), grace=True), SCHEDULE)
    state = pruner.state_dict()
    said = "Random(grace=True, momentum='clean', candidates='all', start_value='zero', regrow={})"
    state["settings"]["method"] = said.format(repr(sp.Constant(0.2)))
    pruner.load_state_dict(state)
    state["settings"]["method"] = said.format(repr(sp.Constant(0.3)))
    with pytest.raises(InvalidValue, match="another method"):
        pruner.load_state_dict(state)


@pytest.mark.parametrize("name", sp.methods())
def test_the_help_has_a_meaning_for_every_setting(name):
    meanings = meanings_of(name)
    assert all(meanings.get(setting) for setting in settings_of(name))


def test_several_cuts_go_with_neither_regrowth_nor_acting():
    method = make(cuts_per_update=lambda self: 3, acts=(ClassVar[bool], True))()
    with pytest.raises(InvalidValue, match="Mine takes 3 cuts per mask update") as caught:
        sp.Pruner(conv_net(), method, SCHEDULE)
    assert 20 <= len(str(caught.value)) <= 300
