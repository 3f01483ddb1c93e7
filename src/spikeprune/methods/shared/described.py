"""Reads the docstrings of the methods: a line on each method, and the meaning of each of its settings."""

import inspect
import re

from spikeprune.methods.registry import method_class

ARGUMENTS = re.compile(r"^Args:((?: .*)?\n?(?:[ ].*\n?|\n(?=[ ]))*)", re.MULTILINE)


def doc_of(name: str) -> str:
    return inspect.cleandoc(method_class(name).__doc__ or "")


def summary_of(name: str) -> str:
    """The first paragraph of a method's docstring, as one line."""
    return doc_of(name).partition("\n\n")[0].replace("\n", " ")


def meanings_of(name: str) -> dict[str, str]:
    """Setting of a method -> what its docstring says of it."""
    arguments = ARGUMENTS.search(doc_of(name))
    return _meanings(arguments[1]) if arguments else {}


def _meanings(text: str) -> dict[str, str]:
    """Setting -> its text in an `Args:` section. An entry may describe several settings (`unit, curve: as ...`)."""
    entries = re.split(r"^ {1,4}(\w+(?:, \w+)*): ", text, flags=re.MULTILINE)[1:]
    pairs = zip(entries[::2], entries[1::2], strict=True)
    return {key: " ".join(said.split()) for keys, said in pairs for key in keys.split(", ")}
