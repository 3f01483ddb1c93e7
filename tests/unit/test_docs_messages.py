"""The page of messages quotes messages that exist, that of adapters names each method, and docstrings open plainly."""

import ast
import re
from pathlib import Path

import spikeprune
from spikeprune.model.adapter import Adapter

PAGE = Path(__file__).parents[2] / "docs/guide/troubleshooting.md"


def strings():
    """All texts in the source; a gap stands for what is filled in."""
    for path in Path(spikeprune.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                yield "".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_every_heading_is_part_of_a_message():
    quoted = re.findall(r"^### `(.+)`$", PAGE.read_text(), re.MULTILINE)
    assert len(quoted) > 25
    everything = "\1".join(strings())
    assert [text for text in quoted if text not in everything] == []


def test_the_page_of_adapters_names_every_method():
    page = PAGE.with_name("adapters.md").read_text()
    methods = [name for name, value in vars(Adapter).items() if callable(value) and not name.startswith("_")]
    assert len(methods) > 10
    assert [name for name in methods if f"`{name}(" not in page] == []


RIDDLE = re.compile(
    r"(?:What|Those|That|Such|The same|As for|Of|Its|So that)\b"
)  # words that point at what is not named


def openings():
    """(place, first sentence) of each docstring of the source."""
    for path in Path(spikeprune.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and (text := ast.get_docstring(node)):
                yield f"{path.name}: {getattr(node, 'name', 'module')}", text


def test_docstrings_name_what_they_are_about():
    found = list(openings())
    assert len(found) > 2000
    assert [place for place, text in found if RIDDLE.match(text)] == []
