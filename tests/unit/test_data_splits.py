"""Splits, limits, statistics and the checksum, on data small enough to count by hand."""

import json

import pytest
import torch
from torch import Tensor

from spikeprune.core.errors import InvalidValue, UnknownName, UserError
from spikeprune.data import Dataset, Split, digits, facts_of, load, names, sizes
from spikeprune.data.dataset import Source, assemble, digest, moments, stratified
from spikeprune.lab.train.measure import data_record


def source(train: int = 40, test: int = 10, own: int = 0) -> Source:
    """Images that carry their own number, so that splits can be told apart; classes 0 and 1 as 3 : 1."""

    def split(count: int, offset: int) -> Split:
        images = (torch.arange(count) + offset).to(torch.uint8).reshape(count, 1, 1, 1).repeat(1, 1, 2, 2)
        return Split(images, (torch.arange(count) % 4 == 3).long())

    return Source(split(train, 0), split(test, 200), ("a", "b"), validation=split(own, 100) if own else None)


def members(split: Split) -> set[int]:
    return set(split.inputs[:, 0, 0, 0].tolist())


def test_validation_comes_from_train_stratified_and_nothing_is_lost() -> None:
    data = assemble("toy", source(), limit=None, seed=0, validation=0.1)
    assert data.counts == {"train": 36, "validation": 4, "test": 10}
    assert members(data.train) | members(data.validation) == set(range(40))
    assert torch.bincount(data.validation.labels).tolist() == [3, 1]
    assert torch.equal(data.test.inputs, source().test.inputs)


def test_the_seed_alone_decides_the_draw() -> None:
    held = [members(assemble("toy", source(), limit=None, seed=s, validation=0.25).validation) for s in (0, 0, 1)]
    assert held[0] == held[1]
    assert held[0] != held[2]


def test_limit_counts_train_and_validation_together_and_leaves_test_whole() -> None:
    data = assemble("toy", source(), limit=20, seed=0, validation=0.2)
    assert data.counts == {"train": 16, "validation": 4, "test": 10}
    assert int(data.train.labels.sum() + data.validation.labels.sum()) == 5  # a quarter of 20
    assert not members(data.train) & members(data.validation)
    one = assemble("toy", source(), limit=1, seed=0, validation=0.0)
    assert one.counts == {"train": 1, "validation": 0, "test": 10}


def test_without_validation_training_has_the_whole_split_in_its_order() -> None:
    data = assemble("toy", source(), limit=None, seed=3, validation=0.0)
    assert torch.equal(data.train.inputs, source().train.inputs)
    assert data.counts["validation"] == 0


def test_a_validation_split_of_the_data_s_own_is_used_as_it_stands() -> None:
    data = assemble("toy", source(own=6), limit=20, seed=0, validation=0.1)
    assert data.counts == {"train": 20, "validation": 6, "test": 10}
    assert members(data.validation) == set(range(100, 106))
    assert assemble("toy", source(own=6), limit=None, seed=0, validation=0.0).counts["validation"] == 0


@pytest.mark.parametrize(("count", "expected"), [(0, [0, 0, 0]), (7, [4, 2, 1]), (14, [8, 4, 2]), (28, [16, 8, 4])])
def test_stratified_takes_each_class_in_proportion(count: int, expected: list[int]) -> None:
    labels = torch.tensor([0] * 16 + [1] * 8 + [2] * 4)
    chosen, rest = stratified(labels, count, torch.Generator().manual_seed(0))
    assert torch.bincount(labels[chosen], minlength=3).tolist() == expected
    assert torch.equal(torch.cat([chosen, rest]).sort().values, torch.arange(28))


def test_a_part_of_the_test_split_is_the_same_for_all_seeds_and_is_told() -> None:
    data = [assemble("toy", source(), limit=None, seed=s, validation=0.0, test_limit=4) for s in (0, 1)]
    assert members(data[0].test) == members(data[1].test)
    assert data[0].counts["test"] == 4
    assert data[0].checksum == assemble("toy", source(), limit=None, seed=0, validation=0.0).checksum
    whole = len(source().test)
    assert data[0].notes[-1].startswith(f"only 4 of the {whole} test images are scored")
    assert assemble("toy", source(), limit=None, seed=0, validation=0.0, test_limit=whole).notes == ()
    with pytest.raises(InvalidValue, match=f"data.test_limit must be 1 to {whole}"):
        assemble("toy", source(), limit=None, seed=0, validation=0.0, test_limit=whole + 1)


def test_sizes_and_their_limits() -> None:
    assert sizes(50_000, None, 0.1) == (45_000, 5_000)
    assert sizes(50_000, 1000, 0.0) == (1000, 0)
    assert sizes(50_000, 12, 0.01) == (11, 1)  # one is held out if any is asked for
    for total, limit, validation, text in [
        (100, 0, 0.1, r"data\.limit must be 1 to 100"),
        (100, 101, 0.1, r"data\.limit must be 1 to 100.*got 101"),
        (100, None, 1.0, r"data\.validation must be a share"),
        (100, 1, 0.1, r"1 training images, 1 held out"),
    ]:
        with pytest.raises(InvalidValue, match=text):
            sizes(total, limit, validation)


def test_mean_and_std_worked_by_hand() -> None:
    # channel 0 holds 0, 255, 0, 255: mean 1/2, std 1/2; channel 1 is constant 51: mean 1/5, and std 1 by convention
    images = torch.tensor([[[[0, 255]], [[51, 51]]], [[[0, 255]], [[51, 51]]]], dtype=torch.uint8)
    mean, std = moments(Split(images, torch.zeros(2, dtype=torch.int64)), 255.0)
    assert mean == pytest.approx((0.5, 0.2))
    assert std == pytest.approx((0.5, 1.0))


def test_float_inputs_are_used_as_they_are_unless_a_scale_is_given() -> None:
    split = Split(torch.rand(8, 1, 2, 2), torch.arange(8) % 2)

    def made(**given: float) -> tuple[float, tuple[float, ...], tuple[float, ...]]:
        data = assemble("toy", Source(split, split, ("a", "b"), **given), limit=None, seed=0, validation=0.0)
        return data.scale, data.mean, data.std

    assert made() == (1.0, (0.0,), (1.0,))
    assert made(scale=16.0) == (16.0, (0.0,), (1.0,))


def test_moments_of_recordings_follow_the_channel() -> None:
    frames = torch.randint(0, 9, (3, 5, 2, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = moments(Split(frames, torch.zeros(5, dtype=torch.int64), time_first=True), 1.0)
    assert mean == pytest.approx(frames.float().mean((0, 1, 3, 4)).tolist())
    assert std == pytest.approx(frames.float().std((0, 1, 3, 4), correction=0).tolist())


def test_the_checksum_sees_pixels_labels_and_shape_but_no_choice() -> None:
    base = source().train
    changed = base.inputs.clone()
    changed[0, 0, 0, 0] += 1
    others = [
        Split(changed, base.labels),
        Split(base.inputs, 1 - base.labels),
        Split(base.inputs.reshape(40, 1, 1, 4), base.labels),
    ]
    assert len({digest(base), *map(digest, others)}) == 4
    whole = assemble("toy", source(), limit=None, seed=0, validation=0.0)
    part = assemble("toy", source(), limit=8, seed=5, validation=0.5)
    assert whole.checksum == part.checksum == digest(source().train, source().test)


def test_the_record_is_plain_json() -> None:
    record = data_record(assemble("toy", source(), limit=None, seed=0, validation=0.1))
    assert json.loads(json.dumps(record)) == record
    assert record["counts"] == {"train": 36, "validation": 4, "test": 10}
    assert record["published"] == "unknown"


def test_splits_that_do_not_fit_are_refused() -> None:
    labels = torch.zeros(3, dtype=torch.int64)
    with pytest.raises(InvalidValue, match="do not fit 3 labels"):
        Split(torch.zeros(4, 1, 2, 2), labels)
    with pytest.raises(InvalidValue, match="time first"):
        Split(torch.zeros(3, 4, 1, 2, 2), labels, time_first=True)
    with pytest.raises(InvalidValue, match=r"got shape \[3\]"):
        Split(torch.zeros(3), labels)
    good = Split(torch.zeros(3, 1, 2, 2), labels)
    with pytest.raises(InvalidValue, match=r"label 2 is outside 0\.\.1"):
        Dataset("toy", good, good, Split(good.inputs, labels + 2), ("a", "b"))
    with pytest.raises(InvalidValue, match="test split has samples of shape and type"):
        Dataset("toy", good, good, Split(torch.zeros(3, 1, 2, 3), labels), ("a", "b"))
    with pytest.raises(InvalidValue, match="test split holds no sample"):
        assemble("toy", source(test=0), limit=None, seed=0, validation=0.0)


def test_digits_are_the_real_ones() -> None:
    data = load("digits")
    facts = facts_of("digits")
    assert facts is not None
    assert data.counts["train"] + data.counts["validation"] == facts.train == 1797 - 355
    assert data.counts["test"] == facts.test == 355  # every fifth of 178, 182, 177, 183, 181, 182, 181, 179, 174, 180
    assert data.shape == facts.shape == (1, 8, 8)
    assert int(data.train.inputs.max()) == 16 == data.scale
    assert data.classes == tuple("0123456789")
    assert torch.bincount(data.test.labels).tolist() == [35, 36, 35, 36, 36, 36, 36, 35, 34, 36]
    first: Tensor = torch.tensor([0, 0, 5, 13, 9, 1, 0, 0])  # top row of the first image, a zero
    assert torch.equal(load("digits", validation=0.0).train.inputs[0, 0, 0].long(), first)


def test_test_is_the_same_for_every_seed() -> None:
    one, two = load("digits", seed=1), load("digits", seed=2, limit=100)
    assert torch.equal(one.test.inputs, two.test.inputs)
    assert one.checksum == two.checksum
    assert two.counts == {"train": 90, "validation": 10, "test": 355}


def test_names_and_unknown_ones() -> None:
    assert names() == sorted(names())
    assert {name for name in names() if facts_of(name) is None} == {"image-folder"}
    with pytest.raises(UnknownName, match="no dataset named 'cifar-10'; did you mean 'cifar10'"):
        load("cifar-10")
    with pytest.raises(InvalidValue, match="T must be at least 1"):
        load("digits", T=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_data_moves_as_a_whole() -> None:
    data = assemble("toy", source(), limit=None, seed=0, validation=0.1)
    moved = data.to("cuda")
    assert {moved.train.inputs.device.type, moved.validation.labels.device.type} == {"cuda"}
    assert moved.checksum == data.checksum


def test_an_absent_scikit_learn_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits, "find_spec", lambda _: None)
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(UserError, match=r"pip install 'spikeprune\[demo\]'"):
        load("digits")


def test_digits_read_without_scikit_learn_s_import_are_those_that_it_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    quick = digits._from_scikit_learn()
    monkeypatch.setattr(digits, "find_spec", lambda _: None)
    for mine, theirs in zip(quick, digits._from_scikit_learn(), strict=True):
        assert mine.shape == theirs.shape
        assert (mine == theirs).all()
