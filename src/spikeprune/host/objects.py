"""Finds the object that `package.module:name` names. Users name their own models and data in this way."""

import contextlib
import importlib
import importlib.abc
import os
import sys
from collections.abc import Generator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from spikeprune.core.errors import InvalidValue, UserError, unknown


def resolve_object(spec: str, outside: Path | None = None) -> object:
    """The object that `package.module:name` names; the working folder is searched as well.

    As with `python -m`, the working folder stands first on `sys.path` and stays there, so that what the user's module
    imports later is found too. A dotted name after the colon goes into the object (`module:Class.build`).

    Args:
        spec: `package.module:name`.
        outside: a folder that no module may come from. If the working folder lies in it, it is not searched.
    Returns: the object, whatever it is; the caller says what it needs.
    Raises: InvalidValue for a spec without module or name, and for a module that is missing or fails while it is
        imported (the failure is chained); UnknownName for a name that the module lacks.
    """
    module_name, colon, path = spec.partition(":")
    if not (colon and module_name and path):
        raise InvalidValue(f"expected package.module:name (such as my_net:build), got {spec!r}")
    folder = os.getcwd()
    searched = module_name not in sys.modules and (outside is None or not _inside(folder, outside))
    if searched and folder not in sys.path:
        sys.path.insert(0, folder)
    importlib.invalidate_caches()  # the module may be younger than the last look into its folder
    try:
        with _never_from(outside):
            module = importlib.import_module(module_name)
            _check_place(module_name, getattr(module, "__file__", None), outside)
            found: object = module
    except UserError:
        raise
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise InvalidValue(
                f"no module {error.name!r} for {spec!r}; run from the folder that holds it, or install it"
            ) from error
        raise InvalidValue(f"importing {module_name!r} failed: {_one_line(error)}") from error
    except Exception as error:  # the user's module runs here, and may raise anything
        raise InvalidValue(f"importing {module_name!r} failed: {_one_line(error)}") from error
    for name in path.split("."):
        if not hasattr(found, name):
            public = [known for known in dir(found) if not known.startswith("_")]
            raise unknown("object", name, public, f"in {module_name} (asked for as {spec!r})")
        found = getattr(found, name)
    return found


def _inside(path: str | Path, folder: Path) -> bool:
    """Whether a path lies in a folder, by its name or by where its links lead."""
    as_named = Path(os.path.abspath(path)).is_relative_to(os.path.abspath(folder))
    return as_named or Path(path).resolve().is_relative_to(folder.resolve())


def _check_place(module: str, file: str | None, outside: Path | None) -> None:
    if file is not None and outside is not None and _inside(file, outside):
        raise InvalidValue(
            f"the module {module[:80]!r} lies in the run folder itself, and code that a run folder holds is never run; "
            "move the module elsewhere if you wrote it"
        )


@contextlib.contextmanager
def _never_from(folder: Path | None) -> Generator[None]:
    """Refuses each import from inside the folder, before any code of the module runs."""
    if folder is None:
        yield
        return
    guard = _Refusing(folder)
    sys.meta_path.insert(0, guard)
    try:
        yield
    finally:
        sys.meta_path.remove(guard)


class _Refusing(importlib.abc.MetaPathFinder):
    """Asks the other finders, and refuses what they find in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        for finder in sys.meta_path:
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is None:
                continue
            _check_place(fullname, spec.origin if spec.has_location else None, self.folder)
            return spec
        return None


def _one_line(error: Exception) -> str:
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:160]}"
