"""The method of a recipe: its keys beside those that every recipe has, and the object."""

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING

from spikeprune.core.errors import InvalidValue
from spikeprune.core.schedule import Constant, Until
from spikeprune.lab.recipe.settings import Recipe, leaves
from spikeprune.lab.recipe.squeeze_settings import training_method
from spikeprune.lab.recipe.validate import fits, shown, spelled
from spikeprune.record.base import Json

if TYPE_CHECKING:
    from spikeprune.methods.base import Method


def make_method(recipe: Recipe) -> "Method":
    """The recipe's method, with those settings that it has.

    Raises: InvalidValue for a setting outside what the method allows.
    """
    from spikeprune.methods import make_method as made

    part = recipe.regrow
    regrow = {"decay": part, "constant": Constant(part), "early": Until(initial=part)}[recipe.regrow_schedule]
    return made(training_method(recipe.method), regrow=regrow, **recipe.settings)


def own_settings(recipe: Recipe) -> dict[str, Json]:
    """The settings that only the recipe's method has, defaults filled in; those of other methods are dropped.

    Raises: InvalidValue for a value of another type than the default's.
    """
    from spikeprune.methods import settings_of

    own: dict[str, Json] = {}
    for key, default in settings_of(training_method(recipe.method)).items():
        if key not in _shared():
            value = recipe.settings.get(key, default)
            if default is not None and not fits(value, type(default)):
                kind = spelled(type(default))
                raise InvalidValue(f"{key} must be {kind}, got {shown(value)} (method {recipe.method})")
            own[key] = value
    return own


def method_defaults(written: Mapping[str, Json], given: Mapping[str, str]) -> dict[str, Json]:
    """The settings that the chosen method declares for recipes, by key.

    Keys that the recipe sets are left out if it was written for this method, so that its own values hold.
    For an unknown method the result is empty.
    """
    from spikeprune.methods import names
    from spikeprune.methods.registry import hints_of

    meant = str(written.get("method", "criticality"))
    chosen = given.get("method", meant)
    if chosen not in names():  # refused later, with the nearest name
        return {}
    return {key: value for key, value in hints_of(chosen).defaults.items() if chosen != meant or key not in written}


def method_settings() -> dict[str, list[str]]:
    """Settings that only methods have -> the methods that have them."""
    from spikeprune.methods import names

    return _method_settings_of(tuple(names()))


@functools.cache
def _method_settings_of(methods: tuple[str, ...]) -> dict[str, list[str]]:
    from spikeprune.methods import settings_of

    found: dict[str, list[str]] = {}
    for method in methods:
        for setting in settings_of(method):
            if setting not in _shared():
                found.setdefault(setting, []).append(method)
    return found


@functools.cache
def _shared() -> frozenset[str]:
    return frozenset(field.name for field in leaves(Recipe))
