"""Crop, flip and cutout against slices written out by hand, and the draws."""

import pytest
import torch

from spikeprune.core.errors import InvalidValue
from spikeprune.data.augment import Augment, crop, cutout, flip

IMAGES = torch.arange(1, 1 + 3 * 2 * 4 * 4, dtype=torch.uint8).reshape(3, 2, 4, 4)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_crop_is_a_slice_of_the_padded_image() -> None:
    padded = torch.zeros(3, 2, 8, 8, dtype=torch.uint8)
    padded[:, :, 2:6, 2:6] = IMAGES
    top, left = torch.tensor([0, 2, 4]), torch.tensor([1, 2, 0])
    out = crop(IMAGES, top, left, 2)
    for n, (row, column) in enumerate(zip(top, left, strict=True)):
        assert torch.equal(out[n], padded[n, :, row : row + 4, column : column + 4])
    assert torch.equal(out[1], IMAGES[1])  # an offset of the padding leaves the image in place


def test_crop_worked_by_hand() -> None:
    image = torch.tensor([[[[1, 2], [3, 4]]]], dtype=torch.uint8)
    down_right = crop(image, torch.tensor([0]), torch.tensor([0]), 1)
    up = crop(image, torch.tensor([2]), torch.tensor([1]), 1)
    assert down_right.tolist() == [[[[0, 0], [0, 1]]]]
    assert up.tolist() == [[[[3, 4], [0, 0]]]]


def test_flip_mirrors_only_the_chosen_and_twice_is_the_identity() -> None:
    which = torch.tensor([True, False, True])
    once = flip(IMAGES, which)
    assert once[0, 0, 0].tolist() == [4, 3, 2, 1]
    assert torch.equal(once[1], IMAGES[1])
    assert torch.equal(flip(once, which), IMAGES)


def test_cutout_zeros_exactly_the_clipped_square() -> None:
    # size 2 around (row, column) covers rows row - 1 and row; at (0, 0) only the corner pixel is inside the image
    row, column = torch.tensor([2, 0, 3]), torch.tensor([2, 0, 1])
    out = cutout(IMAGES, row, column, 2)
    expected = IMAGES.clone()
    expected[0, :, 1:3, 1:3] = 0
    expected[1, :, 0:1, 0:1] = 0
    expected[2, :, 2:4, 0:2] = 0
    assert torch.equal(out, expected)
    odd = cutout(torch.ones(1, 1, 5, 5), torch.tensor([2]), torch.tensor([2]), 3)
    assert odd[0, 0].tolist() == [[1, 1, 1, 1, 1], *[[1, 0, 0, 0, 1]] * 3, [1, 1, 1, 1, 1]]


def test_same_generator_same_images_and_type_kept() -> None:
    x = torch.randint(1, 256, (64, 3, 8, 8), dtype=torch.uint8, generator=generator(1))
    augment = Augment(crop=2, flip=True, cutout=4)
    once, again, other = augment(x, generator(5)), augment(x, generator(5)), augment(x, generator(6))
    assert once.dtype == torch.uint8
    assert once.shape == x.shape
    assert torch.equal(once, again)
    assert not torch.equal(once, other)


def test_nothing_switched_on_changes_nothing_and_draws_nothing() -> None:
    source = generator(3)
    before = source.get_state()
    assert torch.equal(Augment()(IMAGES, source), IMAGES)
    assert torch.equal(source.get_state(), before)


def test_all_offsets_and_both_sides_are_drawn() -> None:
    dot = torch.zeros(2000, 1, 3, 3, dtype=torch.uint8)
    dot[:, :, 1, 1] = 1
    shifted = Augment(crop=1)(dot, generator())
    share = shifted.float().mean((0, 1))  # each of the 9 positions with probability 1/9; 5 standard errors = 0.035
    assert torch.allclose(share, torch.full((3, 3), 1 / 9), atol=0.035)
    left = torch.zeros(2000, 1, 1, 2, dtype=torch.uint8)
    left[..., 0] = 1
    assert abs(float(Augment(flip=True)(left, generator())[..., 0].float().mean()) - 0.5) < 0.06
    holes = Augment(cutout=1)(torch.ones(2000, 1, 2, 2), generator())
    assert torch.equal(holes.sum((1, 2, 3)), torch.full((2000,), 3.0))
    assert torch.allclose(1 - holes.mean((0, 1)), torch.full((2, 2), 0.25), atol=0.05)


def test_time_steps_of_a_recording_move_together() -> None:
    frame = torch.randint(0, 256, (16, 2, 6, 6), dtype=torch.uint8, generator=generator(2))
    recording = torch.stack([frame, 255 - frame, frame])  # [T, N, C, H, W]
    augment = Augment(crop=2, flip=True)
    out = augment(recording, generator(4))
    assert out.shape == recording.shape
    assert torch.equal(out[0], augment(frame, generator(4)))
    assert torch.equal(out[0], out[2])


def test_wrong_settings_and_inputs_are_told() -> None:
    with pytest.raises(InvalidValue, match="augment crop must be 0"):
        Augment(crop=-1)
    with pytest.raises(InvalidValue, match="augment cutout must be 0"):
        Augment(cutout=-2)
    with pytest.raises(InvalidValue, match=r"needs images .* got shape \[5, 7\]"):
        Augment(flip=True)(torch.zeros(5, 7), generator())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_same_images_on_every_device() -> None:
    augment = Augment(crop=1, flip=True, cutout=2)
    assert torch.equal(augment(IMAGES, generator(7)), augment(IMAGES.cuda(), generator(7)).cpu())
