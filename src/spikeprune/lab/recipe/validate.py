"""The one validator of recipes: a value fits the type, the choices and the rule that stand at its field.

`key` and `said` declare the field of a settings dataclass with its meaning; `check_fields` checks an object of such a
class; `from_text` reads a value that came as text, from a command line or from YAML.
"""

import dataclasses
import math
import re
import reprlib
import types
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, final

from spikeprune.core.errors import InvalidValue

LONGEST = 1000  # characters of a text
_LARGEST = 2**63
_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}
_TRUTH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_NULL = ("null", "~", "")
_WHOLE = re.compile(r"[-+]?[0-9]+(_[0-9]+)*")


@final
@dataclass(frozen=True)
class Rule:
    """Which values a key takes beyond its type; `allowed` says it in words, as in "0 or more pixels"."""

    allowed: str
    holds: Callable[[Any], bool]


@final
@dataclass(frozen=True)
class Key:
    """The description of a recipe's field: its meaning for the help, its choices and its rule."""

    meaning: str
    choices: tuple[str, ...] = ()
    rule: Rule | None = None


def said(meaning: str, *, choices: Iterable[str] = (), rule: Rule | None = None) -> dict[str, Key]:
    """The metadata of a field of a settings dataclass."""
    return {"key": Key(meaning, tuple(choices), rule)}


def key(default: Any, meaning: str, *, choices: Iterable[str] = (), rule: Rule | None = None) -> Any:
    """A field of a settings dataclass whose default is a plain value."""
    return dataclasses.field(default=default, metadata=said(meaning, choices=choices, rule=rule))


def key_of(field: dataclasses.Field[Any]) -> Key:
    return field.metadata["key"]


def share(allowed: str = "a share in [0, 1)") -> Rule:
    return Rule(allowed, lambda value: value is None or 0 <= value < 1)


def whole(least: int, most: int, allowed: str) -> Rule:
    return Rule(allowed, lambda value: value is None or least <= value <= most)


def check_fields(settings: Any, prefix: str = "") -> None:
    """Checks all fields of a settings object, the types first.

    Raises: InvalidValue that names the key, what it takes and what came.
    """
    kinds = typing.get_type_hints(type(settings))
    fields = dataclasses.fields(settings)
    for field in fields:
        value, kind, choices = getattr(settings, field.name), kinds[field.name], key_of(field).choices
        if not fits(value, kind) or (choices and value not in choices):
            raise InvalidValue(f"{prefix}{field.name} must be {spelled(kind, choices)}, got {shown(value)}")
    for field in fields:
        rule, value = key_of(field).rule, getattr(settings, field.name)
        if rule is not None:
            require(rule.holds(value), f"{prefix}{field.name}", rule.allowed, value)


def require(holds: bool, name: str, allowed: str, value: object) -> None:
    """Raises: InvalidValue unless `holds`."""
    if not holds:
        raise InvalidValue(f"{name} must be {allowed}, got {shown(value)}; `spikeprune run --help` explains each key")


def fits(value: object, kind: Any) -> bool:
    """Whether a value is of a type; texts are short and printable, numbers finite and below 2^63."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return any(fits(value, option) for option in typing.get_args(kind))
    if kind is float:
        whole_or_float = fits(value, int) or isinstance(value, float)
        return whole_or_float and math.isfinite(typing.cast(float, value))
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < _LARGEST
    if kind is str:
        return isinstance(value, str) and len(value) <= LONGEST and value.isprintable()
    if typing.get_origin(kind) is list:
        (inner,) = typing.get_args(kind)
        return isinstance(value, list) and all(fits(item, inner) for item in typing.cast(list[object], value))
    return isinstance(value, typing.get_origin(kind) or kind)


def from_text(value: Any, kind: Any) -> Any:
    """A value of a file or of a command line as the type that its key has; what does not fit stays as it came.

    A whole number becomes a float where a float is wanted, so that `lr: 1` and `lr: 1.0` are one setting.
    """
    options = typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)
    if isinstance(value, str) and type(None) in options and value.strip() in _NULL:
        return None
    for option in options:
        read = _as(value, option)
        if fits(read, option):
            return read
    return value


def _as(value: Any, kind: Any) -> Any:
    if typing.get_origin(kind) is list and isinstance(value, list):
        (inner,) = typing.get_args(kind)
        return [_as(item, inner) for item in typing.cast(list[Any], value)]
    if kind is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) < _LARGEST:
        return float(value)
    if not isinstance(value, str) or kind is str:
        return value
    text = value.strip()
    if kind is bool:
        return _TRUTH.get(text.lower(), value)
    if kind is int:
        return int(text) if len(text) < 30 and _WHOLE.fullmatch(text) else value
    if kind is float:
        try:
            return float(text)
        except ValueError:
            return value
    if typing.get_origin(kind) is list and text.startswith("[") and text.endswith("]"):
        (inner,) = typing.get_args(kind)
        return [_as(item.strip(), inner) for item in text[1:-1].split(",")] if text[1:-1].strip() else []
    return value


def spelled(kind: Any, choices: tuple[str, ...] = ()) -> str:
    """A type in words: `int | None` is "a whole number or null"."""
    if choices:
        return " or ".join(choices)
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return " or ".join(spelled(option) for option in typing.get_args(kind))
    return _WORDS.get(kind, "a list of numbers")


def shown(value: object) -> str:
    """A value for a message, however large it is."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # Python refuses to print a whole number of thousands of digits
        return f"a {type(value).__name__} that is too long to print"


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80
_SHORT.maxlist, _SHORT.maxdict, _SHORT.maxlevel = 4, 3, 2
