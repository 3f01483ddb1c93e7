"""The short form of tests/fuzz_networks.py: two networks of each kind through every door."""

import pytest

pytest.importorskip("norse")
pytest.importorskip("nir")
pytest.importorskip("onnxruntime")

from fuzz_networks import DOORS, KINDS, network, outcome


def test_every_kind_is_among_the_first_networks():
    assert {network(number)[0] for number in range(len(KINDS))} == set(KINDS)


@pytest.mark.parametrize("number", range(10))
def test_no_door_differs_in_silence(number):
    found = {door: outcome(number, 0, door) for door in DOORS}
    assert {door: said for door, said in found.items() if said[0] in ("differs", "error")} == {}
