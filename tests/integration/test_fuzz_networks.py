"""The short form of tests/fuzz_networks.py: two networks of each kind, compiled."""

import pytest

pytest.importorskip("norse")
pytest.importorskip("nir")
pytest.importorskip("onnxruntime")

from fuzz_networks import KINDS, network, outcome


def test_every_kind_is_among_the_first_networks():
    assert {network(number)[0] for number in range(len(KINDS))} == set(KINDS)


@pytest.mark.parametrize("number", range(10))
def test_the_compiled_network_does_not_differ(number):
    what, words = outcome(number, 0, "compiled")
    assert what in ("ok", "refused"), words
