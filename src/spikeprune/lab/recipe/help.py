"""The keys of a recipe for `spikeprune run --help`: type, allowed values, default and meaning, in groups."""

import dataclasses
import textwrap
import typing
from collections.abc import Callable, Mapping
from typing import Any

from spikeprune.lab.recipe.method import method_settings
from spikeprune.lab.recipe.settings import GROUPS, leaves
from spikeprune.lab.recipe.validate import key_of, spelled

_TITLES = {
    "": "The run",
    "data.": "Data (what the network learns from)",
    "optim.": "Optimizer",
    "prune.": "Pruning schedule (when the network is pruned)",
    "squeeze.": "Squeeze (`spikeprune squeeze`)",
}


def help_lines(meanings_of: Callable[[str], Mapping[str, str]], width: int = 80) -> list[str]:
    """All keys, two or more lines each.

    Args:
        meanings_of: method name -> meaning of each of its settings.
        width: of the terminal, in characters.
    """
    lines: list[str] = []
    for prefix, cls in GROUPS.items():
        lines += ["", f"{_TITLES.get(prefix, prefix)}:"]
        for field in leaves(cls):
            lines += key_lines(prefix + field.name, width=width)
    lines += ["", "Settings of methods (--method NAME; others ignore them):"]
    for key, users in sorted(method_settings().items()):
        lines += _method_entry(key, users, meanings_of, width)
    return lines


def key_lines(key: str, flag: str | None = None, default: str | None = None, width: int = 80) -> list[str]:
    """One key of a recipe: what it may be, its default and its meaning.

    Args:
        flag: how the command spells it, if not by the key itself.
        default: as text, if the command has another default than the recipe.
    """
    prefix = next(prefix for prefix in sorted(GROUPS, key=len, reverse=True) if key.startswith(prefix))
    cls = GROUPS[prefix]
    field = next(field for field in leaves(cls) if prefix + field.name == key)
    kind, said = typing.get_type_hints(cls)[field.name], key_of(field)
    allowed = spelled(kind, said.choices) if said.rule is None else _allowed(said.rule.allowed)
    if said.rule is not None and type(None) in typing.get_args(kind):
        allowed += " or null"
    return _entry(flag or key, allowed, default or written(_default(field)), said.meaning, width)


def _entry(key: str, allowed: str, default: str, meaning: str, width: int) -> list[str]:
    head = textwrap.wrap(f"--{option(key)}  {allowed}; default {default}", width, initial_indent="  ",
                         subsequent_indent="        ", break_on_hyphens=False)  # fmt: skip
    return head + textwrap.wrap(meaning, width, initial_indent="      ", subsequent_indent="      ")


def _method_entry(key: str, users: list[str], meanings_of: Callable[[str], Mapping[str, str]], width: int) -> list[str]:
    """The help lines of one setting of methods: each of its meanings, with the defaults."""
    from spikeprune.methods import settings_of

    told: dict[tuple[str, str], list[str]] = {}
    for user in users:
        told.setdefault((meanings_of(user).get(key, ""), written(settings_of(user)[key])), []).append(user)
    lines = [f"  --{option(key)}"]
    for (meaning, default), names in told.items():
        text = f"{', '.join(names)} (default {default}){': ' if meaning else ''}{meaning}"
        lines += textwrap.wrap(text, width, initial_indent="      ", subsequent_indent="        ")
    return lines


def option(key: str) -> str:
    """A key as options spell it, with dashes: `regrow-schedule`. The command line takes `regrow_schedule` too."""
    return key.replace("_", "-")


def _allowed(rule: str) -> str:
    return "text" if rule.startswith("letters") else rule


def _default(field: "dataclasses.Field[Any]") -> object:
    return field.default_factory() if callable(field.default_factory) else field.default


def written(value: object) -> str:
    """A value as a recipe has it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)
