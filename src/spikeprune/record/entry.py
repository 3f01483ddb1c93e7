"""How a dataclass is read from JSON and written: every value is checked, and unknown keys are kept.

A class names its keys by its fields. The annotation says what a value may be, and `Annotated[kind, check]` bounds it:

    @final
    @dataclass(frozen=True)
    class Cut(Entry):
        step: Count                       # a whole number of at least 0
        share: Share | None               # null: not measured
        layers: Mapping[str, Count]
        seconds: Number | None = optional()   # the key is left out where it is None

Numbers are kept as they stand in the file: an int stays an int where a float is expected.
"""

import dataclasses
import functools
import json
import math
import types
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from spikeprune.core.errors import UserError

T = TypeVar("T")
Read = Callable[[object, str], object]  # (value, its key) -> what the field holds


class Damaged(UserError):
    """A file that is not what it should be. The message names the file and the key."""


class _Bad(ValueError):
    """A value that a key may not have; `Damaged` adds the file."""


@dataclass(frozen=True)
class Within:
    """Bounds of a number, both included."""

    least: float
    most: float = math.inf


Count = Annotated[int, Within(0)]
Number = float
Positive = Annotated[float, Within(0)]
Share = Annotated[float, Within(0, 1)]


def optional() -> Any:
    """A field whose key may be missing; it is written only where it is not None."""
    return field(default=None, metadata={"optional": True})


@dataclass(frozen=True)
class Entry:
    """A dataclass that is a JSON object. `extra` holds the keys of later versions, which are written back as they are.

    Abstract: a subclass adds its fields and is final.
    """

    extra: Mapping[str, object] = field(default_factory=dict[str, object], kw_only=True)

    @classmethod
    def read(cls, values: object, key: str = "") -> Self:
        """The object from parsed JSON.

        Args:
            key: where the object stands in its file, for messages.
        Raises: ValueError naming the key, for a value that it may not have or a key that is missing.
        """
        if not isinstance(values, Mapping):
            raise _Bad(f"{key or 'the whole'} is {_shown(values)}, must be an object")
        found: dict[str, object] = {}
        rest = dict(cast("Mapping[str, object]", values))
        for name, (parse, needed) in _fields(cls).items():
            place = f"{key}.{name}" if key else name
            if name in rest:
                found[name] = parse(rest.pop(name), place)
            elif needed:
                raise _Bad(f"{place} is missing")
        return cast("Any", cls)(**found, extra=rest)  # each value was checked for its own field

    @classmethod
    def load(cls, path: Path) -> Self:
        """The object that a file holds. Raises: Damaged in one line that names the file and the key."""
        return loaded(path, cls.read)

    def as_dict(self) -> dict[str, object]:
        """Plain values for JSON, keys in the order of the fields, unknown ones last."""
        own = dict(self._own())
        return own | {key: value for key, value in self.extra.items() if key not in own}

    def _own(self) -> Iterator[tuple[str, object]]:
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if f.name != "extra" and not (value is None and "optional" in f.metadata):
                yield f.name, plain(value)

    def as_json(self, indent: int | None = None) -> str:
        """The object as text. Raises: ValueError for a number that is not finite."""
        return json.dumps(self.as_dict(), indent=indent, allow_nan=False)


def loaded(path: Path, read: Callable[[object], T]) -> T:
    """What `read` makes of a file's JSON. Raises: Damaged in one line that names the file and the key."""
    with whole(path):
        return read(json.loads(path.read_text(encoding="utf-8")))


@contextmanager
def whole(path: Path) -> Generator[None]:
    """Whatever goes wrong inside means that the file cannot be read or is damaged. Raises: Damaged."""
    try:
        yield
    except OSError as error:
        raise Damaged(f"cannot read {path}: {error.strerror}; a finished run has this file") from error
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        what = str(error) if isinstance(error, _Bad) else f"{type(error).__name__}: {error}"
        raise Damaged(f"{path} is damaged ({what[:110]}); restore it, or run again with another --out") from error


def plain(value: object) -> object:
    """A field's value as JSON has it."""
    if isinstance(value, Entry):
        return value.as_dict()
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in cast("Mapping[object, object]", value).items()}
    if isinstance(value, tuple | list):
        return [plain(part) for part in cast("tuple[object, ...]", value)]
    return value


@functools.cache
def _fields(cls: type[Entry]) -> dict[str, tuple[Read, bool]]:
    """Field -> how its value is read, and whether the key must be there."""
    hints = get_type_hints(cls, include_extras=True)
    return {
        f.name: (_reader(hints[f.name]), f.default is MISSING and f.default_factory is MISSING)
        for f in dataclasses.fields(cls)
        if f.name != "extra"
    }


def _reader(kind: object) -> Read:
    """How a value of an annotation is read."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _bounded(_reader(parts[0]), parts[1])
    if origin in (Union, types.UnionType):
        return _nullable(_reader(next(part for part in parts if part is not type(None))))
    if origin is tuple:
        return _each(_reader(parts[0])) if parts[-1] is Ellipsis else _fixed([_reader(part) for part in parts])
    if origin is Mapping:
        return _values(_reader(parts[1]))
    if isinstance(kind, type) and issubclass(kind, Entry):
        return kind.read
    return _scalar(cast("type", kind))


def _scalar(kind: type) -> Read:
    words = {int: "a whole number", float: "a finite number", str: "text", bool: "true or false"}

    def read(value: object, key: str) -> object:
        if kind is object:
            return value
        right = isinstance(value, int | float if kind is float else kind)
        if (isinstance(value, bool) and kind is not bool) or (isinstance(value, float) and not math.isfinite(value)):
            right = False
        if not right:
            raise _Bad(f"{key} is {_shown(value)}, must be {words[kind]}")
        return value

    return read


def _bounded(read: Read, bounds: Within) -> Read:
    def bounded(value: object, key: str) -> object:
        found = cast("float", read(value, key))
        if not bounds.least <= found <= bounds.most:
            limit = (
                f"{bounds.least:g} or more" if bounds.most == math.inf else f"in [{bounds.least:g}, {bounds.most:g}]"
            )
            raise _Bad(f"{key} is {_shown(found)}, must be {limit}")
        return found

    return bounded


def _nullable(read: Read) -> Read:
    return lambda value, key: None if value is None else read(value, key)


def _each(read: Read) -> Read:
    def each(value: object, key: str) -> object:
        return tuple(read(part, f"{key}[{at}]") for at, part in enumerate(_list(value, key)))

    return each


def _fixed(readers: list[Read]) -> Read:
    def fixed(value: object, key: str) -> object:
        found = _list(value, key)
        if len(found) != len(readers):
            raise _Bad(f"{key} has {len(found)} entries, must have {len(readers)}")
        return tuple(read(part, f"{key}[{at}]") for at, (read, part) in enumerate(zip(readers, found, strict=True)))

    return fixed


def _values(read: Read) -> Read:
    def values(value: object, key: str) -> object:
        if not isinstance(value, Mapping):
            raise _Bad(f"{key} is {_shown(value)}, must be an object")
        return {name: read(part, f"{key}.{name}") for name, part in cast("Mapping[str, object]", value).items()}

    return values


def _list(value: object, key: str) -> list[object]:
    if not isinstance(value, list | tuple):
        raise _Bad(f"{key} is {_shown(value)}, must be a list")
    return list(cast("list[object]", value))


def _shown(value: object) -> str:
    return repr(value) if len(repr(value)) <= 40 else f"{repr(value)[:37]}..."
