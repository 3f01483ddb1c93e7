"""From `package.module:name` to the object of that name: how a model or a data set of the user's own is given."""

import importlib
import os
import sys

from spikeprune.core.errors import InvalidValue, UserError, unknown


def resolve_object(spec: str) -> object:
    """The object that `package.module:name` names; the working folder is searched as well.

    As with `python -m`, the working folder stands first on `sys.path` and stays there, so that what the user's module
    imports later is found too. A dotted name after the colon goes into the object (`module:Class.build`).

    Args:
        spec: `package.module:name`.
    Returns: the object, whatever it is; the caller says what it needs.
    Raises: InvalidValue for a spec without module or name, and for a module that is missing or fails while it is
        imported (the failure is chained); UnknownName for a name that the module lacks.
    """
    module_name, colon, path = spec.partition(":")
    if not (colon and module_name and path):
        raise InvalidValue(f"expected package.module:name (such as my_net:build), got {spec!r}")
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
    importlib.invalidate_caches()  # the module may be younger than the last look into its folder
    try:
        found: object = importlib.import_module(module_name)
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


def _one_line(error: Exception) -> str:
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:160]}"
