"""Shared by the commands: an argument parser with our error messages, and JSON output."""

import argparse
import json
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from spikeprune.core.errors import InvalidValue

if TYPE_CHECKING:
    from spikeprune.lab.train.code import Code


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises InvalidValue with a message of one line for a wrong command line.

    Args:
        examples: command lines without the word `spikeprune`, for the end of `--help`.
    """

    def __init__(self, command: str, description: str, examples: Sequence[str]):
        super().__init__(
            prog=f"spikeprune {command}",
            description=description,
            epilog="\n".join(["examples:", *(f"  spikeprune {example}" for example in examples)]),
            allow_abbrev=False,
            formatter_class=_Help,
        )

    def error(self, message: str) -> NoReturn:
        raise InvalidValue(f"{self.prog}: {message}; `{self.prog} --help` shows what it takes")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        raise SystemExit(status)


class _Help(argparse.HelpFormatter):
    """Fills paragraphs to 80 columns, leaves examples as they are written, and shows the default of each option."""

    def __init__(self, prog: str):
        super().__init__(prog, width=80)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        parts = [part.strip("\n") for part in text.split("\n\n")]
        filled = (
            part if "\n  " in part else textwrap.fill(" ".join(part.split()), width, break_on_hyphens=False)
            for part in parts
        )
        return "\n\n".join(textwrap.indent(part, indent) for part in filled)

    def _get_help_string(self, action: argparse.Action) -> str:
        said = action.help or ""
        told = action.default not in (None, False, [], argparse.SUPPRESS) and "(default" not in said
        return f"{said} (default %(default)s)" if told and action.option_strings else said


def add_code_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of commands that open a run folder and build its network."""
    parser.add_argument("--data.root", dest="root", default=None, help="where the data lies now, if it has moved")
    parser.add_argument("--trust", action="store_true", help="run the Python code that the run folder names")
    parser.add_argument("--model", default=None, help="your package.module:build, in place of what the folder names")
    parser.add_argument("--data.name", dest="data", default=None, help="your package.module:loaders, likewise")


def code_of(options: argparse.Namespace) -> "Code":
    """The values of these options, as a `Code`."""
    from spikeprune.lab.train.code import Code

    return Code(options.trust, options.model, options.data)


def print_json(value: Any) -> None:
    """Prints one JSON object to stdout."""
    print(json.dumps(value, allow_nan=False))


def take(words: list[str], option: str, command: str) -> str | None:
    """Removes an option that is no recipe key, and its value, from `words`; returns the value, or None without it.

    Raises: InvalidValue if the option has no value.
    """
    for at, word in enumerate(words):
        if word.startswith(f"{option}="):
            return words.pop(at).partition("=")[2]
        if word == option:
            words.pop(at)
            if at == len(words) or words[at].startswith("--"):
                raise InvalidValue(f"{option} needs a value; `spikeprune {command} --help` shows what it takes")
            return words.pop(at)
    return None
