"""Code that a run folder names, and who vouches for it.

A recipe may name Python of the user's own: `model: package.module:build`, `data.name: package.module:loaders`. In a
recipe that the user wrote this is his wish. In a run folder that someone sent it is not, so a command that opens a run
folder runs such code only if the user names it himself or says that he trusts the folder.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from spikeprune.core.errors import UserError
from spikeprune.host.objects import resolve_object
from spikeprune.lab.recipe import Recipe, load, read_values


@final
@dataclass(frozen=True)
class Code:
    """The user's decision about code that a run folder names: run it, replace it, or refuse it.

    Args:
        trust: that the modules which the folder names may be imported, though never from inside the folder.
        model: the user's own `package.module:build` (or a zoo name), in place of what the folder names.
        data: the user's own `package.module:loaders` (or the name of a dataset), in place of what the folder names.
    """

    trust: bool = False
    model: str | None = None
    data: str | None = None


NO_CODE = Code()


def recipe_of(folder: Path, root: str | None = None, code: Code = NO_CODE) -> Recipe:
    """The recipe of a run folder, with what the user says in place of what it says.

    Args:
        folder: of the run.
        root: where the data lies now.
    Raises: UserError if the recipe names code that nobody vouches for, or code inside the folder.
    """
    given = {"data.root": root, "model": code.model, "data.name": code.data}
    words = [f"--{key}={value}" for key, value in given.items() if value is not None]
    recipe = load(str(folder / "recipe.yaml"), words)
    named = {"model": recipe.model, "data.name": recipe.data.name}
    vouch_for(folder, {key: value for key, value in named.items() if given[key] is None}, code.trust)
    return recipe


def vouch_for(folder: Path, named: Mapping[str, str], trust: bool) -> None:
    """Refuses what a run folder names under `named` (key -> value) if it is code and may not run.

    Trusted modules are imported here, so that none is found inside the folder later.
    Raises: UserError, as `recipe_of`.
    """
    for key, value in named.items():
        if ":" not in value:
            continue
        if not trust:
            shown = value if len(value) <= 60 else f"{value[:57]}..."
            raise UserError(
                f"the run folder names Python code, {key}: {ascii(shown)[1:-1]}, and it is not run unasked; give "
                f"--{key} yourself, or --trust if you know who made the folder"
            )
        resolve_object(value, outside=folder)


def vouch_for_recipe(source: str, overrides: Sequence[str], trust: bool) -> None:
    """Refuses code that a recipe inside a run folder names, unless it is trusted: `spikeprune run RUN/recipe.yaml`.

    A recipe anywhere else is the user's own. Keys that the user overrides are his own, too.
    """
    path = Path(source)
    try:
        ours = path.name == "recipe.yaml" and any((path.parent / name).exists() for name in _OF_A_RUN)
    except (OSError, ValueError):  # a name with a NUL or of thousands of characters is no file
        return
    if not ours:
        return
    _, values = read_values(source)
    given = {word.removeprefix("--").partition("=")[0] for word in overrides}
    for key, plural in _NAMES_CODE.items():
        if given & {key, plural}:
            continue
        for value in (values.get(key), values.get(plural)):
            for text in value if isinstance(value, list) else [value]:
                vouch_for(path.parent, {key: str(text)}, trust)


# A key of a recipe, and what a sweep calls a list of its values.
_NAMES_CODE = {"model": "models", "data.name": "datasets"}
_OF_A_RUN = ("record.json", "checkpoint", ".lock")
