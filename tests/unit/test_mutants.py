"""The tool that breaks the library on purpose: its mutants, the tests that it asks, and its list of equivalent ones."""

import ast

import pytest

from mutants import EQUIVALENT, SOURCE, _reaching, mutant, places


@pytest.mark.parametrize(("file", "part", "change", "why"), EQUIVALENT)
def test_a_listed_mutant_still_stands_in_one_line_of_its_file(file, part, change, why):
    text = (SOURCE / file).read_text()
    (number,) = [number for number, line in enumerate(text.splitlines(), 1) if part in line]
    assert (number, change) in {(line, what) for _, line, what in places(text)}
    assert why


TEXT = """\
LIMIT = 3

def whole(
    size: int,
    most: int = 5,
) -> bool:
    \'\'\'Whether it is whole.\'\'\'
    if size < 0:
        raise ValueError(f"{size + 1} is too small")
    return all((
        size > LIMIT,
        size < most,
    ))
"""


def test_a_mutant_changes_one_place_and_no_message():
    found = {(line, change) for _, line, change in places(TEXT)}
    assert found == {
        (1, "3 -> 4"), (5, "5 -> 6"), (8, "if -> if not"), (8, "Lt -> LtE"), (8, "0 -> 1"), (9, "raise -> pass"),
        (11, "Gt -> GtE"), (12, "Lt -> LtE"),
    }  # fmt: skip
    honest = ast.unparse(ast.parse(TEXT)).splitlines()
    for index, _, _ in places(TEXT):
        broken = mutant(TEXT, index).splitlines()
        assert sum(a != b for a, b in zip(honest, broken, strict=True)) == 1


def test_a_line_that_runs_at_the_import_alone_asks_the_tests_of_its_function_or_file():
    reached = {"a.py:8": ["low", "high"], "a.py:9": ["low"], "a.py:10": ["high"], "a.py:1": ["import"]}
    assert _reaching(reached, "a.py", 9, TEXT) == ["low"]
    assert _reaching(reached, "a.py", 12, TEXT) == ["high"]  # the statement begins in line 10
    assert _reaching(reached, "a.py", 5, TEXT) == _reaching(reached, "a.py", 1, TEXT) == ["high", "low"]
