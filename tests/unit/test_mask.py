"""A mask refuses anything but alive and dead, counts itself, and packs into bits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spikeprune.core.errors import InvalidValue, UnknownName
from spikeprune.core.mask import Masks, check_obeyed, disobeying, pack, unpack


def test_counts():
    masks = Masks({"a": torch.tensor([[True, False], [True, True]]), "b": torch.tensor([False, False])})
    assert (masks.total, masks.alive) == (6, 3)
    assert masks.density == masks.sparsity == 0.5
    assert list(masks) == ["a", "b"]
    assert "a" in masks
    assert "c" not in masks
    assert Masks({}).density == 1.0


def test_and_or():
    a = Masks({"w": torch.tensor([True, True, False])})
    b = Masks({"w": torch.tensor([True, False, False])})
    assert (a & b)["w"].tolist() == [True, False, False]
    assert (a | b)["w"].tolist() == [True, True, False]


def test_zeros_and_ones_of_another_type_are_taken():
    assert Masks({"w": torch.tensor([1.0, 0.0])})["w"].dtype is torch.bool


def test_wrong_values_shapes_and_names_are_refused():
    with pytest.raises(InvalidValue, match="only 0 and 1"):
        Masks({"w": torch.tensor([0.5])})
    with pytest.raises(InvalidValue, match="differ in shape"):
        Masks({"w": torch.ones(2)}) & Masks({"w": torch.ones(3)})
    with pytest.raises(UnknownName, match=r"did you mean 'conv1\.weight'"):
        Masks({"conv1.weight": torch.ones(2)})["conv.weight"]


def test_read_only():
    masks = Masks({"w": torch.ones(2)})
    with pytest.raises(TypeError):
        masks["w"] = torch.zeros(2)  # type: ignore[index]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(0, 99))
def test_pack_round_trip(shape, seed):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    bits = pack(mask)
    assert bits.dtype is torch.uint8
    assert bits.numel() == (mask.numel() + 7) // 8
    assert torch.equal(unpack(bits, tuple(shape)), mask)


def test_truncated_bits_are_refused():
    with pytest.raises(InvalidValue, match="do not fit"):
        unpack(pack(torch.ones(64, dtype=torch.bool))[:-1], (64,))


def test_weights_that_the_masks_cut_and_that_are_not_0_are_counted():
    masks = {"a": torch.tensor([True, False, False]), "b": torch.tensor([False]), "c": torch.tensor([False])}
    values = {"a": torch.tensor([1.0, 2.0, 0.0]), "b": torch.tensor([0.0])}
    assert disobeying(masks, values) == {"a": 1}  # "c" has no values
    assert disobeying(masks, {**values, "c": torch.ones(2)}) == {"a": 1}  # those of another network
    with pytest.raises(InvalidValue, match=r"1 weights that the masks cut are not 0 \(1 of 'a'\)"):
        check_obeyed(masks, values)
    check_obeyed(masks, {"a": torch.tensor([1.0, 0.0, 0.0])})
