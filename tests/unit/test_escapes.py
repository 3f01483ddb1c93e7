"""Names from files stand in pages and tables as text, whatever characters they hold."""

import pytest

from spikeprune.lab.study.tables import _cell, _tex


@pytest.mark.parametrize("name", ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1"])
def test_a_name_that_looks_like_a_formula_is_text_in_a_csv_file(name):
    assert _cell(name) == f"'{name}"
    assert _cell(f"a{name}") == f"a{name}"


def test_a_name_cannot_be_a_command_of_latex():
    said = _tex(r"\input{/etc/passwd} $x$ 50% a_b #1 ^~ <>&")
    assert said == (r"\textbackslash input\{/etc/passwd\} \$x\$ 50\% a\_b \#1 \^{}\~{} $<$$>$\&")
