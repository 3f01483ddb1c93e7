"""How a record is read from JSON and written: every value is checked, and unknown keys are kept.

A record is a dataclass whose fields are the keys of a JSON object. The annotation says what a value may be, and
`Annotated[kind, Within(...)]` bounds it:

    @recorded
    class Cut(Record):
        step: Count                           # a whole number of at least 0
        share: Share | None                   # null: not measured
        layers: Mapping[str, Count]
        seconds: Number | None = optional(default=None)   # the key is left out where it is None

A record is also the dict of its keys, so that `record["step"]`, `dict(record)` and `json.dumps(record)` work as they
did when records were plain dicts. Numbers stay as they stand in the file: an int stays an int where a float may stand.
"""

import dataclasses
import functools
import json
import math
import types
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    NoReturn,
    Self,
    TypeAlias,
    TypeVar,
    Union,
    cast,
    dataclass_transform,
    final,
    get_args,
    get_origin,
    get_type_hints,
)

from spikeprune.core.errors import UserError
from spikeprune.host.files import ordinary

T = TypeVar("T")
Read = Callable[[object, str], object]  # (value, its key) -> what the field holds


class Damaged(UserError):
    """A file that is not what it should be. The message names the file and the key."""


class Impossible(ValueError):
    """A value that a key may not have; `Damaged` adds the file."""


@final
@dataclass(frozen=True)
class Within:
    """Bounds of a number, both included."""

    least: float
    most: float = math.inf


if TYPE_CHECKING:
    Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"
    """A value as a JSON or YAML file has it."""
else:  # what checks types while tests run knows no recursive ones
    Json = object

Count = Annotated[int, Within(0)]
Number = float
Positive = Annotated[float, Within(0)]
Share = Annotated[float, Within(0, 1)]


def optional(*, default: None) -> Any:
    """A field whose key may be missing; it is written only where it is not None.

    Type checkers read at the call, `optional(default=None)`, that the field may be left out.
    """
    return field(default=default, metadata={"optional": True})


@dataclass_transform(frozen_default=True, kw_only_default=True, eq_default=False, field_specifiers=(field, optional))
def recorded(cls: type[T]) -> type[T]:
    """Makes a subclass of `Record` a frozen dataclass that compares and prints as its dict."""
    return dataclass(frozen=True, eq=False, repr=False, kw_only=True)(cls)


@recorded
class Record(dict[str, Json]):
    """A JSON object with typed keys. `extra` holds the keys of later versions, which are written back as they are.

    Neither a field nor a key can be set: `dataclasses.replace` makes another record. Abstract.
    """

    extra: Mapping[str, Json] = field(default_factory=dict[str, Json])

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if f.name != "extra" and not (value is None and "optional" in f.metadata):
                dict.__setitem__(self, f.name, list(value) if isinstance(value, tuple) else value)
        for key, value in self.extra.items():
            dict.setdefault(self, key, value)

    @classmethod
    def read(cls, values: object, key: str = "") -> Self:
        """The record from parsed JSON; its keys keep the order that they have there.

        Args:
            key: where the object stands in its file, for messages.
        Raises: Impossible naming the key, for a value that it may not have or a key that is missing.
        """
        if not isinstance(values, Mapping):
            raise Impossible(f"{key or 'the whole'} is {_shown(values)}, must be an object")
        rest = dict(cast("Mapping[str, object]", values))
        order, found = list(rest), dict[str, object]()
        for name, (parse, needed) in _fields(cls).items():
            place = f"{key}.{name}" if key else name
            if name in rest:
                found[name] = parse(rest.pop(name), place)
            elif needed:
                raise Impossible(f"{place} is missing")
        made = cast("Any", cls)(**found, extra=rest)  # each value was checked for its own field
        ordered = {name: dict.get(made, name) for name in order}
        dict.clear(made)
        dict.update(made, ordered)
        return made

    @classmethod
    def of_file(cls, path: Path) -> Self:
        """The record that a file holds. Raises: Damaged in one line that names the file and the key."""
        return loaded(path, cls.read)

    def as_dict(self) -> dict[str, Json]:
        """Plain values all the way down."""
        return {key: plain(value) for key, value in self.items()}

    def as_json(self, indent: int | None = None) -> str:
        """The record as text. Raises: ValueError for what could not be read again, such as nan."""
        self.read(self.as_dict())
        return json.dumps(self, indent=indent, allow_nan=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).read, (self.as_dict(),)

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise TypeError(
            f"a {type(self).__name__} stays as it is; dataclasses.replace gives another one, dict(...) a copy"
        )

    __setitem__ = __delitem__ = update = pop = popitem = clear = setdefault = __ior__ = _refuse  # pyright: ignore


def loaded(path: Path, read: Callable[[object], T]) -> T:
    """Reads a record from a file's JSON. Raises: Damaged in one line that names the file and the key."""
    with whole(path):
        return read(json.loads(ordinary(path).read_text(encoding="utf-8")))


@contextmanager
def whole(path: Path) -> Generator[None]:
    """Context in which any error means that the file cannot be read or is damaged. Raises: Damaged."""
    try:
        yield
    except OSError as error:
        raise Damaged(f"cannot read {path}: {error.strerror}; a finished run has this file") from error
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError) as error:
        what = str(error) if isinstance(error, Impossible) else f"{type(error).__name__}: {error}"
        raise Damaged(f"{path} is damaged ({what[:110]}); restore it, or run again with another --out") from error


def plain(value: object) -> Json:
    """A value as plain JSON values: dicts, lists, numbers and text."""
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in cast("Mapping[object, object]", value).items()}
    if isinstance(value, tuple | list):
        return [plain(part) for part in cast("tuple[object, ...]", value)]
    return cast("Json", value)


@functools.cache
def _fields(cls: type[Record]) -> dict[str, tuple[Read, bool]]:
    """Field -> how its value is read, and whether the key must be there."""
    hints = get_type_hints(cls, include_extras=True)
    return {
        f.name: (_reader(hints[f.name]), f.default is MISSING and f.default_factory is MISSING)
        for f in dataclasses.fields(cls)
        if f.name != "extra"
    }


def _reader(kind: object) -> Read:
    """The function that reads and checks a value of the annotated type `kind`."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _bounded(_reader(parts[0]), parts[1])
    if origin in (Union, types.UnionType):
        return _either([part for part in parts if part is not type(None)], null=type(None) in parts)
    if origin is tuple:
        return _each(_reader(parts[0])) if parts[-1] is Ellipsis else _fixed([_reader(part) for part in parts])
    if origin is Mapping:
        return _values(_reader(parts[1]))
    if isinstance(kind, type) and issubclass(kind, Record):
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
        if isinstance(value, int) and not -(2**63) <= value < 2**63:  # nothing that is counted or measured is so large
            right = False
        if not right:
            raise Impossible(f"{key} is {_shown(value)}, must be {words[kind]}")
        return value

    return read


def _bounded(read: Read, bounds: Within) -> Read:
    def bounded(value: object, key: str) -> object:
        found = cast("float", read(value, key))
        if not bounds.least <= found <= bounds.most:
            limit = (
                f"{bounds.least:g} or more" if bounds.most == math.inf else f"in [{bounds.least:g}, {bounds.most:g}]"
            )
            raise Impossible(f"{key} is {_shown(found)}, must be {limit}")
        return found

    return bounded


def _either(kinds: list[object], *, null: bool) -> Read:
    """A record if the value is an object and one of the kinds is a record, else the other kind; null where allowed."""
    records: list[type[Record]] = []
    others: list[Read] = []
    for kind in kinds:
        if isinstance(kind, type) and issubclass(kind, Record):
            records.append(kind)
        else:
            others.append(_reader(kind))
    of_objects = records[0].read if records else others[0]
    of_others = others[0] if others else of_objects

    def either(value: object, key: str) -> object:
        if value is None and null:
            return None
        return (of_objects if isinstance(value, Mapping) else of_others)(value, key)

    return either


def _each(read: Read) -> Read:
    def each(value: object, key: str) -> object:
        return tuple(read(part, f"{key}[{at}]") for at, part in enumerate(_list(value, key)))

    return each


def _fixed(readers: list[Read]) -> Read:
    def fixed(value: object, key: str) -> object:
        found = _list(value, key)
        if len(found) != len(readers):
            raise Impossible(f"{key} has {len(found)} entries, must have {len(readers)}")
        return tuple(read(part, f"{key}[{at}]") for at, (read, part) in enumerate(zip(readers, found, strict=True)))

    return fixed


def _values(read: Read) -> Read:
    def values(value: object, key: str) -> object:
        if not isinstance(value, Mapping):
            raise Impossible(f"{key} is {_shown(value)}, must be an object")
        return {name: read(part, f"{key}.{name}") for name, part in cast("Mapping[str, object]", value).items()}

    return values


def _list(value: object, key: str) -> list[object]:
    if not isinstance(value, list | tuple):
        raise Impossible(f"{key} is {_shown(value)}, must be a list")
    return list(cast("list[object]", value))


def _shown(value: object) -> str:
    return repr(value) if len(repr(value)) <= 40 else f"{repr(value)[:37]}..."
