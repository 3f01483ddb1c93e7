"""Figures as text: digits, prefixes, durations, and columns that line up."""

import pytest

from spikeprune.record.text import aligned, duration, short, three, tick


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (0.00912, "0.0091"), (0.01, "0.01"), (4.784, "4.78"), (9.99, "9.99"), (9.996, "10.0"), (10.0, "10"),
        (99.94, "99.9"), (99.96, "100"), (116.4, "116"), (1234.5, "1,234"), (-4.784, "-4.78"), (-116.4, "-116"),
    ],
)  # fmt: skip
def test_three_digits(value, text):
    assert three(value) == text


def test_prefixes():
    assert [short(v) for v in (999, 999.6, 4_784_000, 2e9, 3e12, 4e15, 0.5)] == [
        "999", "1.00 k", "4.78 M", "2.00 G", "3.00 T", "4.00 P", "0.50",
    ]  # fmt: skip
    assert short(116_000, "B") == "116 kB"
    assert short(12, "B") == "12 B"
    assert [tick(v) for v in (1000, 0.5, 2e7, -3000)] == ["1 k", "0.5", "20 M", "-3 k"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.25, "0.2 s"), (9.94, "9.9 s"), (10, "10 s"), (41.3, "41 s"), (119, "119 s"), (120, "2 min"), (720, "12 min"),
        (7199, "120 min"), (7200, "2.0 h"), (12240, "3.4 h"),
    ],
)  # fmt: skip
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_columns_are_two_spaces_apart_and_numbers_flush_right():
    rows = [["layer", "alive", "of"], ["conv", "12", "1024"], ["classifier", "3", "9"]]
    assert aligned(rows) == [
        "layer       alive    of",
        "conv           12  1024",
        "classifier      3     9",
    ]
    assert aligned(rows, left=(0, 2)) == [
        "layer       alive  of",
        "conv           12  1024",
        "classifier      3  9",
    ]


def test_a_long_cell_stays_on_one_line():
    assert aligned([["a" * 300, "1"], ["[b]", "20"]]) == ["a" * 300 + "   1", "[b]" + " " * 299 + "20"]
