"""What is known of the built-in datasets before any file is read: sizes and class names."""

import string
from dataclasses import dataclass

_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
_DIGITS = tuple(string.digits)


@dataclass(frozen=True)
class Facts:
    """Published sizes of a dataset; a part of its images is accepted and stated.

    Args:
        shape: (C, H, W) of one sample at one time step.
        classes: number of classes.
        train, test: number of samples.
        names: of the classes, where they are part of the definition.
    """

    shape: tuple[int, int, int]
    classes: int
    train: int
    test: int
    names: tuple[str, ...] = ()

    def absent(self, train: int, test: int) -> list[str]:
        """Notes that state which part of the published samples is there; none where all are."""
        return [
            f"{have:,} of {published:,} {split} samples present"
            for split, have, published in (("training", train, self.train), ("test", test, self.test))
            if have != published
        ]


FACTS: dict[str, Facts] = {
    "digits": Facts((1, 8, 8), 10, 1442, 355, _DIGITS),
    "fashion-mnist": Facts((1, 28, 28), 10, 60_000, 10_000, _FASHION),
    "mnist": Facts((1, 28, 28), 10, 60_000, 10_000, _DIGITS),
    "cifar10": Facts((3, 32, 32), 10, 50_000, 10_000, _CIFAR10),
    "cifar100": Facts((3, 32, 32), 100, 50_000, 10_000),
    "tiny-imagenet": Facts((3, 64, 64), 200, 100_000, 10_000),
    "nmnist": Facts((2, 34, 34), 10, 60_000, 10_000, _DIGITS),
}
