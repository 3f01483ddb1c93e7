"""The Python blocks of each page run, in their order and in one namespace; commands in shell blocks exist.

A page prepares what a reader would have by a comment `<!-- setup ... -->`, and proves what it says by
`<!-- check ... -->`. Neither shows on the page.
"""

import re
import shlex
from pathlib import Path

import pytest

from spikeprune.cli.main import commands, main

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(p for p in DOCS.rglob("*.md") if "decisions" not in p.parts)]
_PART = re.compile(r"^<!-- (?:setup|check)\n(.*?)^-->|^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
_SHELL = re.compile(r"^```(?:sh|shell|bash)?\n(.*?)^```", re.MULTILINE | re.DOTALL)


def parts(page):
    """The code of a page, each part moved down to its own line so that a traceback names the page's line."""
    text = page.read_text()
    for found in _PART.finditer(text):
        group = 1 if found[1] is not None else 2
        yield "\n" * text.count("\n", 0, found.start(group)) + found[group]


def named(page):
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", [page for page in PAGES if _PART.search(page.read_text())], ids=named)
def test_code_runs(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    namespace = {"__name__": "page"}
    for part in parts(page):
        exec(compile(part, str(page), "exec"), namespace)


def command_lines():
    for page in PAGES:
        for block in _SHELL.findall(page.read_text()):
            for line in block.replace("\\\n", " ").splitlines():
                if line.startswith("spikeprune "):
                    yield named(page), line


def help_of(command, capsys):
    assert main([command, "--help"]) == 0
    return capsys.readouterr().out


def test_commands_and_their_options_exist(capsys):
    lines = list(command_lines())
    assert len(lines) > 20
    keys = help_of("run", capsys)  # of recipes
    for page, line in lines:
        words = shlex.split(line, comments=True)
        assert words[1] in [*commands(), "--help", "--version", "COMMAND"], f"{page}: {line}"
        if words[1] not in commands():
            continue
        known = help_of(words[1], capsys)
        for word in words[2:]:
            option = word.partition("=")[0]
            if option.startswith("--"):
                found = any(re.search(rf"{re.escape(option)}(?![\w.-])", text) for text in (known, keys))
                assert found, f"{page}: {option} in: {line}"
