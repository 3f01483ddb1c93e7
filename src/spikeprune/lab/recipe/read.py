"""Reads a recipe: a YAML file or the name of a shipped one, with `--key value` overrides.

The keys are the fields of the settings (`data.`, `optim.` and `prune.` group some of them) and the settings of the
registered methods, such as `--unit synapse`. Unknown keys and names are refused, with the nearest known one.
"""

import dataclasses
import importlib.resources
import typing
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from spikeprune.core.errors import InvalidValue, UserError, unknown
from spikeprune.lab.recipe.document import read_yaml
from spikeprune.lab.recipe.hash import flatten
from spikeprune.lab.recipe.method import make_method, method_defaults, method_settings, own_settings
from spikeprune.lab.recipe.settings import GROUPS, Recipe, leaves
from spikeprune.lab.recipe.squeeze import squeeze_settings
from spikeprune.lab.recipe.squeeze_settings import SQUEEZE
from spikeprune.lab.recipe.validate import LONGEST, from_text, key_of, shown, spelled
from spikeprune.record.base import Json


def shipped() -> list[str]:
    """Names of the recipes that come with the package, sorted."""
    folder = importlib.resources.files("spikeprune") / "recipes"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def about(name: str) -> str:
    """The first line of the comment at the head of a shipped recipe; its data and model where it has none."""
    text = (importlib.resources.files("spikeprune") / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
    if text.startswith("#"):
        return text.splitlines()[0].removeprefix("#").strip()
    recipe = load(name)
    return f"{recipe.model} on {recipe.data.name}, {recipe.sparsity:.0%} sparse, {recipe.epochs} epochs"


def load(source: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe named `source`, or read from the YAML file `source`, with `--key value` overrides applied.

    Where `epochs` is overridden, the phases that are not overridden themselves scale with it, so that the recipe
    keeps its shape: 200 of 500 epochs become 0.4 of 1. A method may set keys (`RecipeHints.defaults`), such as
    `start: random`: they fill what the recipe leaves open, and what it says for the sake of another method.

    Raises: UnknownName for an unknown recipe, key, method, model or dataset; InvalidValue for a value outside what is
        allowed.
    """
    return from_values(*read_values(source), overrides)


def from_values(name: str, values: Mapping[str, Json], overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of that name from flat `group.key` values, with overrides as in `load`, and its errors."""
    written, given = dict(values), _pairs(overrides)
    _refuse_unknown([*written, *given])
    set_by_method = method_defaults(written, given)
    written |= set_by_method
    before = _build(written, {}, name)
    recipe = _build(written, given, name)
    if recipe.epochs != before.epochs:
        recipe = _stretched(recipe, Fraction(recipe.epochs, before.epochs), {*given, *set_by_method})
    _check_names(recipe)
    data = dataclasses.replace(recipe.data, root=_absolute(recipe.data.root))
    settings = own_settings(recipe)
    recipe = dataclasses.replace(recipe, settings=settings, weights=_absolute(recipe.weights), data=data)
    make_method(recipe)  # for its errors
    if recipe.method == SQUEEZE:
        recipe = dataclasses.replace(
            recipe, squeeze=dataclasses.replace(recipe.squeeze, masks=_absolute(recipe.squeeze.masks))
        )
        squeeze_settings(recipe)  # for its errors
    return recipe


def read_values(source: str) -> tuple[str, dict[str, Json]]:
    """Name and flat `group.key` values of a recipe, unchecked. Raises: UserError if there is no such recipe."""
    path = Path(source)
    if source in shipped():
        text = (importlib.resources.files("spikeprune") / "recipes" / f"{source}.yaml").read_text(encoding="utf-8")
    elif _is_file(path):
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"cannot read the recipe {_end(source)}: {str(error)[:100]}; a recipe is a YAML text file"
            ) from error
    elif path.suffix in (".yaml", ".yml"):
        raise UserError(f"no recipe file {_end(source)}; `spikeprune list recipes` names those that are shipped")
    else:
        raise unknown("recipe", source, shipped(), "(`spikeprune list recipes` lists all; a YAML file works too)")
    values = read_yaml(text, f"the recipe {_end(source)}")
    if not isinstance(values, dict):
        raise UserError(
            f"the recipe {_end(source)} holds no `key: value` lines; see `spikeprune list recipes` for examples"
        )
    return path.stem if path.suffix else source, dict(flatten(typing.cast(dict[str, Json], values)))


def describe_keys() -> list[tuple[str, str, str]]:
    """Every key with its type and its meaning, for `spikeprune run --help`."""
    rows: list[tuple[str, str, str]] = []
    for prefix, cls in GROUPS.items():
        kinds = typing.get_type_hints(cls)
        for field in leaves(cls):
            said = key_of(field)
            rows.append((prefix + field.name, spelled(kinds[field.name], said.choices), said.meaning))
    return rows + [(key, "", f"setting of {', '.join(users)}") for key, users in sorted(method_settings().items())]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name with a NUL or of thousands of characters
        return False


def _end(source: str) -> str:
    """The end of a long path, without characters that a terminal would obey."""
    text = source if source.isprintable() else ascii(source)
    return text if len(text) <= 100 else f"...{text[-100:]}"


def _absolute(path: str | None) -> str | None:
    """The absolute path, so that a recorded path is valid from another working folder too."""
    return None if path is None else str(Path(path).expanduser().resolve())


def _stretched(recipe: Recipe, factor: Fraction, fixed: set[str]) -> Recipe:
    """The recipe with its phases `factor` times as long, except those of the `fixed` keys."""
    phases = [part for part in ("begin", "end", "every", "finetune") if f"prune.{part}" not in fixed]
    lengths = {part: getattr(recipe.prune, part) for part in phases}
    scaled = {part: _scaled(text, factor) for part, text in lengths.items() if text is not None}
    recipe = dataclasses.replace(recipe, prune=dataclasses.replace(recipe.prune, **scaled))
    if "squeeze.tune" in fixed:
        return recipe
    tune = _scaled(recipe.squeeze.tune, factor)
    return dataclasses.replace(recipe, squeeze=dataclasses.replace(recipe.squeeze, tune=tune))


def _scaled(text: str, factor: Fraction) -> str:
    """A duration such as `50it` or `3ep` times `factor`. Steps (`it`) are rounded to whole ones, at least 1 unless 0.

    A `turnover` stays as it is: it does not depend on the length of training.
    """
    if text.strip().endswith("turnover"):
        return text
    amount, unit = Fraction(text.strip()[:-2].strip()), text.strip()[-2:]
    longer = amount * factor
    if unit == "it" and amount:
        longer = Fraction(max(1, round(longer)))
    return f"{float(longer):.10g}{unit}"


def _check_names(recipe: Recipe) -> None:
    """Refuse an unknown method, model or dataset, naming the nearest known one.

    `package.module:function` stands for the user's own model or data, and is looked up when it is needed.
    """
    from spikeprune import data, zoo
    from spikeprune.methods import names as methods

    if recipe.method not in (known := [*methods(), SQUEEZE]):
        raise unknown("method", recipe.method, known, "(`spikeprune list methods` lists all)")
    if ":" not in recipe.model and recipe.model not in zoo.names():
        raise unknown(
            "model", recipe.model, zoo.names(), "(`spikeprune list models` lists all; or package.module:build)"
        )
    if ":" not in recipe.data.name and recipe.data.name not in data.names():
        raise unknown(
            "dataset", recipe.data.name, data.names(), "(`spikeprune list datasets`; or package.module:loaders)"
        )


def _refuse_unknown(given: Sequence[str]) -> None:
    known = [prefix + field.name for prefix, cls in GROUPS.items() for field in leaves(cls)]
    known += method_settings()
    for key in given:
        if key not in known:
            raise unknown("setting", key, known, "(`spikeprune run --help` lists all)")


def _pairs(arguments: Sequence[str]) -> dict[str, str]:
    """`--key value` and `--key=value` as a mapping."""
    pairs: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            raise UserError(f"expected --key value, got {shown(word)}; keys are given as --epochs 5 or --epochs=5")
        key, equals, text = word.removeprefix("--").partition("=")
        key = key.replace("-", "_")  # --regrow-schedule is the key regrow_schedule
        _refuse_unknown([key])
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise UserError(f"--{key} needs a value after it, as in --{key} VALUE")
            text = rest.pop(0)
        pairs[key] = text
    return pairs


def _build(written: Mapping[str, Json], given: Mapping[str, str], name: str) -> Recipe:
    """The recipe from the flat values of its file and from the command line's, which win."""
    own = method_settings()
    values: dict[str, Json] = {"name": name, **written, **given}
    settings = {key: _plain_value(key, value, key in given) for key, value in values.items() if key in own}
    groups = {prefix[:-1]: cls(**_of_class(cls, prefix, values)) for prefix, cls in [*GROUPS.items()][1:]}
    return Recipe(**_of_class(Recipe, "", values), **groups, settings=settings)


def _of_class(cls: Any, prefix: str, values: Mapping[str, Json]) -> dict[str, Any]:
    """The values that are fields of a settings class, converted to the types of the fields."""
    kinds = typing.get_type_hints(cls)
    names = [field.name for field in leaves(cls) if prefix + field.name in values]
    return {name: from_text(values[prefix + name], kinds[name]) for name in names}


def _plain_value(key: str, value: Any, is_text: bool) -> Any:
    """A setting of a method: null, a truth value, a number or a text; the method itself checks which it takes."""
    if is_text:
        value = read_yaml(value, f"the value of --{key}") if len(value) <= LONGEST else value
    if not isinstance(value, str | int | float | None) or (isinstance(value, str) and len(value) > LONGEST):
        raise InvalidValue(f"{key} must be one plain value, not a list or a mapping; got {shown(value)}")
    return value
