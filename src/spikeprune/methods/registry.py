"""Finds the methods, so that a new one is one file and nothing else is edited.

They are the files of this folder, those of the folders that the environment's SPIKEPRUNE_METHODS names (as PATH does),
and the entry points `spikeprune.methods` of other packages.
"""

import dataclasses
import functools
import importlib.metadata
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from spikeprune.core.errors import InvalidValue, unknown
from spikeprune.core.schedule import Schedule
from spikeprune.host.plugins import import_folders, import_siblings
from spikeprune.methods.base import Method
from spikeprune.record.base import Json

_Class = TypeVar("_Class", bound=type[Method])
_METHODS: dict[str, type[Method]] = {}
_SOURCES: dict[str, str] = {}
_NOT_METHODS = {"base", "registry", "shared"}


@dataclasses.dataclass(frozen=True)
class RecipeHints:
    """The parts of a recipe that a method decides. The Pruner does not read them.

    Attributes:
        defaults: keys of a recipe that are set unless the user sets them, such as {"start": "random"}.
        schedule: (method, sparsity, steps, steps per epoch) -> when a run has its mask updates, if that is the method's
            to say and not the recipe's.
        search_T: method -> time steps of a run up to the last cut, None for a number that the network chooses. Not
            given: a run takes all time steps throughout.
    """

    defaults: Mapping[str, Json] = dataclasses.field(default_factory=dict[str, "Json"])
    schedule: Callable[[Any, float, int, int], Schedule] | None = None
    search_T: Callable[[Any], int | None] | None = None


_HINTS: dict[str, RecipeHints] = {}
_NO_HINTS = RecipeHints()
# For methods that prune once, before training: the cut stands in the first step.
IN_THE_FIRST_STEP = RecipeHints(
    {"prune.schedule": "oneshot", "prune.begin": "0it", "prune.every": "1it", "prune.events": 1}
)


def register(name: str, *, source: str, recipe: RecipeHints = _NO_HINTS) -> Callable[[_Class], _Class]:
    """Registers a method class under a name.

    Args:
        source: where it comes from, shown by `spikeprune list methods`.
        recipe: what recipes do for its sake.
    """

    def add(cls: _Class) -> _Class:
        if _METHODS.get(name, cls).__qualname__ != cls.__qualname__:
            raise InvalidValue(f"two methods are named {name!r}: {_METHODS[name].__qualname__} and {cls.__qualname__}")
        _METHODS[name] = cls
        _SOURCES[name] = source
        _HINTS[name] = recipe
        return cls

    return add


@functools.cache
def _load_all() -> None:
    import_siblings("spikeprune.methods", skip=_NOT_METHODS)
    import_folders("SPIKEPRUNE_METHODS", "method")
    for entry in importlib.metadata.entry_points(group="spikeprune.methods"):
        cls = entry.load()
        # A class that registered itself has told its source.
        if _METHODS.get(entry.name) is not cls:
            register(entry.name, source=entry.value)(cls)


def names() -> list[str]:
    """Sorted names of the pruning methods.

    Examples:
        >>> "criticality" in sp.methods()
        True
    """
    _load_all()
    return sorted(_METHODS)


def classes() -> list[type[Method]]:
    """The classes of all methods, in the order of their names."""
    return [_METHODS[name] for name in names()]


def method_class(name: str) -> type[Method]:
    """The class of a method.

    Raises: UnknownName with the nearest name.
    """
    _load_all()
    if name not in _METHODS:
        raise unknown("method", name, _METHODS, "(`spikeprune list methods` lists all)")
    return _METHODS[name]


def source_of(name: str) -> str:
    """The source of a method: a paper or a package."""
    method_class(name)
    return _SOURCES[name]


def hints_of(method: Method | str) -> RecipeHints:
    """The `RecipeHints` of a method; empty ones for an object whose class is not registered.

    Raises: UnknownName for a name that is not registered.
    """
    if isinstance(method, str):
        method_class(method)
    return _HINTS.get(method if isinstance(method, str) else name_of(method), _NO_HINTS)


def name_of(method: Method) -> str:
    """The name a method object is registered under; its class name if it is not."""
    _load_all()
    return next((name for name, cls in _METHODS.items() if type(method) is cls), type(method).__name__)


def settings_of(name: str) -> dict[str, Any]:
    """A method's settings and their defaults."""
    return {
        field.name: None if field.default is dataclasses.MISSING else field.default
        for field in dataclasses.fields(method_class(name))  # type: ignore[arg-type]
    }


def make_method(name: str, **settings: Any) -> Method:
    """A method by name, with those of the settings that it has; others are ignored, so that one recipe fits all.

    Raises: UnknownName; InvalidValue for a bad value.
    """
    known = settings_of(name)
    return method_class(name)(**{key: value for key, value in settings.items() if key in known})
