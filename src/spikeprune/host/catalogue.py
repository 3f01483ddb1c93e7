"""Reads from the text of files what they register, so that `spikeprune list` need not wait for torch to be imported.

A test compares what is read here with what the imported registries hold.
"""

import ast
import importlib.metadata
import importlib.resources
import itertools
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

UNREAD: Final = object()  # an argument that is no plain value
_PACKAGE = Path(__file__).parents[1]


@final
@dataclass(frozen=True)
class Written:
    """A call that stands among the arguments of a registration; those that are no plain values are `UNREAD`."""

    args: tuple[object, ...]
    named: Mapping[str, object]


@final
@dataclass(frozen=True)
class Registration:
    """One `@register("name", ...)` over a class or a function.

    Args:
        doc: the first paragraph of the docstring, as one line.
        facts: the named arguments; those that are no plain values are `UNREAD`.
    """

    name: str
    doc: str
    facts: Mapping[str, object]


def registrations(package: str, variable: str, group: str) -> list[Registration] | None:
    """The registrations of a folder of the package and of the user's folders, sorted by name.

    Args:
        package: folder of the package, such as "methods".
        variable: environment variable that names folders of the user's own.
        group: entry points of other packages.
    Returns: None where text does not tell: another package registers something, or a file cannot be read.
    """
    if importlib.metadata.entry_points(group=group):
        return None
    own = [Path(folder) for folder in filter(None, os.environ.get(variable, "").split(os.pathsep))]
    found: dict[str, Registration] = {}
    try:
        for folder in [_PACKAGE / package, *own]:
            for path in sorted(folder.glob("[!_]*.py")):
                found |= {each.name: each for each in _in_file(path.read_text(encoding="utf-8"))}
    except (OSError, SyntaxError, ValueError):
        return None
    return [found[name] for name in sorted(found)]


def recipe_heads() -> dict[str, str]:
    """Shipped recipe -> the first sentence of the comment at its head, "" where it has none."""
    folder = importlib.resources.files("spikeprune") / "recipes"
    texts = {
        e.name.removesuffix(".yaml"): e.read_text(encoding="utf-8")
        for e in folder.iterdir()
        if e.name.endswith(".yaml")
    }
    return {name: _head(texts[name]) for name in sorted(texts)}


def _head(text: str) -> str:
    comment = itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())
    sentence, stop, _ = " ".join(line.removeprefix("#").strip() for line in comment).partition(". ")
    return sentence + "." * bool(stop)


def _in_file(text: str) -> Iterable[Registration]:
    tree = ast.parse(text)
    constants = {
        statement.targets[0].id: statement.value
        for statement in tree.body
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)
    }
    for statement in tree.body:
        if isinstance(statement, ast.ClassDef | ast.FunctionDef):
            for call in statement.decorator_list:
                if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "register":
                    written = _written(call, constants)
                    doc = (ast.get_docstring(statement) or "").partition("\n\n")[0]
                    if written.args and isinstance(name := written.args[0], str):
                        yield Registration(name, doc.replace("\n", " "), written.named)


def _written(call: ast.Call, constants: Mapping[str, ast.expr], seen: Collection[str] = ()) -> Written:
    named = {entry.arg: _value(entry.value, constants, seen) for entry in call.keywords if entry.arg}
    return Written(tuple(_value(argument, constants, seen) for argument in call.args), named)


def _value(node: ast.expr, constants: Mapping[str, ast.expr], seen: Collection[str]) -> object:
    if isinstance(node, ast.Name) and node.id in constants and node.id not in seen:
        return _value(constants[node.id], constants, {*seen, node.id})
    if isinstance(node, ast.Tuple):
        return tuple(_value(item, constants, seen) for item in node.elts)
    if isinstance(node, ast.Call):
        return _written(node, constants, seen)
    try:
        return ast.literal_eval(node)
    except ValueError:
        return UNREAD
