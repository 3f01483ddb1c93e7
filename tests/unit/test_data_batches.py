"""Batches: normalised, the same for the same (seed, epoch), and resumable at any of them."""

import pytest
import torch
from torch import Tensor

from spikeprune.core.errors import InvalidValue
from spikeprune.data import Dataset, Split, batches, steps_per_epoch
from spikeprune.data.augment import Augment


def toy(count: int = 20) -> Dataset:
    images = torch.randint(0, 256, (count, 3, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    whole = Split(images, torch.arange(count) % 10)
    empty = whole.take(torch.arange(0))
    mean, std = (0.4, 0.5, 0.6), (0.1, 0.2, 0.3)
    return Dataset("toy", whole, empty, whole, tuple("0123456789"), scale=255.0, mean=mean, std=std)


def equal(one: list[tuple[Tensor, Tensor]], two: list[tuple[Tensor, Tensor]]) -> bool:
    return len(one) == len(two) and all(
        torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(one, two, strict=True)
    )


def test_inputs_are_scaled_and_normalised_per_channel() -> None:
    data = toy()
    (x, y) = next(batches(data, "test", 20))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (data.mean, data.std))
    torch.testing.assert_close(x, (data.test.inputs.float() / 255 - mean) / std)
    assert x.dtype == torch.float32
    assert y.dtype == torch.int64
    assert torch.equal(y, data.test.labels)


def test_every_sample_comes_once_an_epoch_in_another_order_each() -> None:
    orders = []
    for epoch in (0, 1):
        found = list(batches(toy(), "train", 8, shuffle=True, seed=3, epoch=epoch))
        assert [len(y) for _, y in found] == [8, 8, 4]
        x = torch.cat([x for x, _ in found])
        orders.append(x.flatten(1).sum(1))
    assert torch.allclose(orders[0].sort().values, orders[1].sort().values)
    assert not torch.equal(orders[0], orders[1])


def test_labels_stay_with_their_images() -> None:
    data = toy()
    plain, _ = next(batches(data, "train", 20))
    for x, y in batches(data, "train", 7, shuffle=True, seed=1):
        for image, label in zip(x, y, strict=True):
            number = int((plain == image).flatten(1).all(1).nonzero()[0])
            assert label == number % 10


def test_an_epoch_can_be_taken_up_at_any_batch_bit_for_bit() -> None:
    settings = {"shuffle": True, "seed": 7, "epoch": 2, "augment": Augment(crop=2, flip=True, cutout=2)}
    whole = list(batches(toy(), "train", 6, **settings))
    for start in range(len(whole) + 1):
        torch.rand(5)  # what others drew in between does not matter
        assert equal(whole[start:], list(batches(toy(), "train", 6, start=start, **settings)))
    assert not equal(whole, list(batches(toy(), "train", 6, **{**settings, "seed": 8})))
    assert not equal(whole, list(batches(toy(), "train", 6, **{**settings, "epoch": 3})))


def test_augmentation_sees_stored_pixels_and_fills_in_black() -> None:
    data = toy()
    (x, _) = next(batches(data, "train", 20, augment=Augment(cutout=3)))
    (plain, _) = next(batches(data, "train", 20))
    black = (torch.zeros(3) - torch.tensor(data.mean)) / torch.tensor(data.std)
    hole = (x - black.view(1, 3, 1, 1)).abs() < 1e-6
    assert hole.all(1).any((1, 2)).all()  # every image has its square
    assert torch.equal(x[~hole], plain[~hole])


def test_recordings_are_cut_along_the_batch_and_keep_their_zeros() -> None:
    frames = torch.arange(3 * 5 * 2 * 2 * 2, dtype=torch.uint8).reshape(3, 5, 2, 2, 2)
    whole = Split(frames, torch.arange(5), time_first=True)
    data = Dataset("events", whole, whole, whole, tuple("01234"))
    found = list(batches(data, "train", 2))
    assert [tuple(x.shape) for x, _ in found] == [(3, 2, 2, 2, 2), (3, 2, 2, 2, 2), (3, 1, 2, 2, 2)]
    assert torch.equal(torch.cat([x for x, _ in found], 1), frames.float())


def test_float_features_come_as_they_are() -> None:
    features = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    whole = Split(features, torch.arange(5))
    data = Dataset("features", whole, whole, whole, tuple("01234"))
    (x, _) = next(batches(data, "train", 5))
    assert torch.equal(x, features)
    x.zero_()
    assert torch.equal(next(batches(data, "train", 5))[0], features)  # a batch is the caller's to change


def test_steps_of_an_epoch() -> None:
    # the paper's: 50,000 images in batches of 128, and Tiny-ImageNet's 100,000
    assert steps_per_epoch(50_000, 128) == 391
    assert steps_per_epoch(100_000, 128) == 782
    assert steps_per_epoch(50_000, 128, drop_last=True) == 390
    assert len(list(batches(toy(), "train", 8, drop_last=True))) == steps_per_epoch(20, 8, drop_last=True) == 2
    assert list(batches(toy(), "validation", 8)) == []


def test_wrong_numbers_are_told_before_the_first_batch() -> None:
    with pytest.raises(InvalidValue, match="batch must be a whole number of at least 1, got 0"):
        batches(toy(), "train", 0)
    with pytest.raises(InvalidValue, match="start must be 0 to 3"):
        batches(toy(), "train", 8, start=4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_same_batches_on_every_device() -> None:
    settings = {"shuffle": True, "seed": 7, "augment": Augment(crop=2, flip=True, cutout=2)}
    there = [(x.cpu(), y.cpu()) for x, y in batches(toy().to("cuda"), "train", 6, device="cuda", **settings)]
    for (a, b), (c, d) in zip(there, batches(toy(), "train", 6, **settings), strict=True):
        torch.testing.assert_close(a, c)
        assert torch.equal(b, d)
