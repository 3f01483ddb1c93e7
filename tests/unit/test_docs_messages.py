"""docs/guide/troubleshooting.md quotes messages that exist; the page of adapters names each method of the interface."""

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
