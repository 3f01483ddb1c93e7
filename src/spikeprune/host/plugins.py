"""Finds code that registers itself: the files of a folder of ours, folders of the user's, other packages."""

import importlib
import importlib.util
import os
import pkgutil
import sys
from collections.abc import Collection
from pathlib import Path

from spikeprune.core.errors import UserError


def import_siblings(package: str, skip: Collection[str] = ()) -> None:
    """Imports the modules of a package of ours, but neither its folders nor the names in `skip`."""
    folder = importlib.import_module(package).__path__
    for module in pkgutil.iter_modules(folder):
        if not module.ispkg and module.name not in skip:
            importlib.import_module(f"{package}.{module.name}")


def import_folders(variable: str, kind: str) -> None:
    """Imports the Python files of the folders that the environment's `variable` names, separated as in PATH.

    Files that begin with an underscore are left out.

    Args:
        kind: what the files register, for the messages: "method" or "dataset".
    Raises: UserError if a folder is missing, or a file cannot be imported.
    """
    for folder in filter(None, os.environ.get(variable, "").split(os.pathsep)):
        if not Path(folder).is_dir():
            raise UserError(f"{variable} names {folder}, which is no folder; it takes folders of {kind} files")
        for path in sorted(Path(folder).glob("[!_]*.py")):
            _import_file(path, kind)


def _import_file(path: Path, kind: str) -> None:
    name = f"spikeprune_{kind}s_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up while it is imported
    try:
        spec.loader.exec_module(module)
    except UserError:
        raise
    except Exception as error:
        problem = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        raise UserError(f"the {kind} file {path} cannot be imported: {problem}; run it with python") from error
