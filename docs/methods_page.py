"""Makes docs/methods.md: every registered method with its source and settings, from its class and docstring.

python docs/methods_page.py          writes the page
python docs/methods_page.py -        prints it; methods of SPIKEPRUNE_METHODS are in it too
"""

import sys
from pathlib import Path

from spikeprune.core.schedule import Schedule
from spikeprune.methods import names, settings_of
from spikeprune.methods.base import Method
from spikeprune.methods.registry import hints_of, method_class, source_of
from spikeprune.methods.shared.described import ARGUMENTS, doc_of, meanings_of, summary_of

_HEAD = """# Methods

Made by `python docs/methods_page.py` from the registry: do not edit. Every setting is a key of a recipe and an
option of the command line (`spikeprune run digits --method criticality --unit synapse`). Scores: higher = keep.

| method | what it does | source |
|---|---|---|
"""


def methods_page() -> str:
    """The page as Markdown: one table of all methods, then a part for each with its rule and settings."""
    rows = [f"| [{name}](#{name}) | {_cell(summary_of(name))} | {_cell(source_of(name))} |" for name in names()]
    return _HEAD + "\n".join([*rows, "", *("\n".join(_part(name)) for name in names())])


def _part(name: str) -> list[str]:
    cls, doc = method_class(name), doc_of(name)
    rest = doc.partition("\n\n")[2]
    arguments = ARGUMENTS.search(rest)
    meanings = meanings_of(name)
    rule = (rest[: arguments.start()] + rest[arguments.end() :]) if arguments else rest
    lines = [f"## {name}", "", summary_of(name), ""]
    if rule.strip():
        lines += ["```text", rule.strip("\n").rstrip(), "```", ""]
    if settings := settings_of(name):
        lines += ["| setting | default | meaning |", "|---|---|---|"]
        lines += [
            f"| `{key}` | `{_spelled(value)}` | {_cell(meanings.get(key, ''))} |" for key, value in settings.items()
        ]
        lines.append("")
    return [*lines, *(f"- {fact}" for fact in _facts(name, cls)), ""]


def _facts(name: str, cls: type[Method]) -> list[str]:
    found = [f"source: {source_of(name)}", f"looks at: {', '.join(sorted(cls.needs))}"]
    if cls.channels:
        found.append("takes the patterns `channel` and `gate` only")
    if cls.regrows:
        found.append("brings pruned weights back")
    if cls.acts:
        found.append("takes part in every step up to the last mask update")
    if cls.rewinds != "never":
        found.append(f"rewinds the weights: {cls.rewinds}")
    if defaults := hints_of(name).defaults:
        found.append("sets in a recipe: " + ", ".join(f"`{k}: {_spelled(v)}`" for k, v in defaults.items()))
    return found


def _spelled(value: object) -> str:
    """As it is written in a recipe."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return type(value).__name__ if isinstance(value, Schedule) else str(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    if sys.argv[1:] == ["-"]:
        print(methods_page(), end="")
    else:
        Path(__file__).with_name("methods.md").write_text(methods_page(), encoding="utf-8")
