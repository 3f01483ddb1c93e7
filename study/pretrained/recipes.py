"""How each network of `sp.pretrained` was trained: every setting that its weights depend on."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final


@final
@dataclass(frozen=True)
class Stage:
    """A part of the training.

    Args:
        until: progress at which it ends; the whole training goes from 0 to 1.
        size: side of the images. Half the full side is averaged over 2x2 pixels, anything between is one crop a batch.
        T: time steps.
        smooth: neurons give the smooth curve of their surrogate in place of spikes; its slope rises from 3 to 8.
            A deep spiking network barely learns in its first thousand steps; so it starts near a network of sigmoids.
    """

    until: float
    size: int
    T: int
    smooth: bool = False


@final
@dataclass(frozen=True)
class Recipe:
    """SGD with Nesterov momentum 0.9; weight decay on weights alone, none on biases and BatchNorm.

    The learning rate rises to `lr` over the first 8 % of progress and falls to 0 by a half cosine.

    Args:
        model, T, size, in_channels: the network, as in `sp.model`.
        data: the dataset; `validation`: share of its training images held out, drawn with seed 0.
        crop, flip: augmentation. smoothing: of the labels.
        half: weights are rounded to float16 at the end, before the network is scored.
        held: steps for which progress is held; 0 lets it grow at every step, in a straight line over each epoch.
        progress: for each epoch (`held` 0) or each `held` steps of an epoch, where the training stands.
        stages: empty for one stage of the full size and all time steps.
    """

    model: str
    T: int
    size: int
    in_channels: int
    data: str
    validation: float
    batch: int
    lr: float
    weight_decay: float
    progress: tuple[float, ...]
    held: int = 0
    smoothing: float = 0.0
    crop: int = 0
    flip: bool = False
    half: bool = False
    stages: tuple[Stage, ...] = ()


def _recorded(name: str) -> tuple[float, ...]:
    """The progress that the published training made: its learning rate followed the clock, and was written down."""
    path = Path(__file__).parent / f"{name}.progress.json"
    return tuple(json.loads(path.read_text())) if path.is_file() else ()


DEEP = (Stage(0.25, 16, 1, smooth=True), Stage(0.7, 24, 2), Stage(1.0, 32, 2))


def _cifar10(name: str, model: str) -> Recipe:
    return Recipe(
        model,
        T=2,
        size=32,
        in_channels=3,
        data="cifar10",
        validation=0.02,
        batch=64,
        lr=0.1,
        weight_decay=3e-4,
        progress=_recorded(name),
        held=25,
        smoothing=0.1,
        crop=4,
        flip=True,
        stages=DEEP,
    )


DIGITS = Recipe(
    "digits-conv-small",
    T=4,
    size=8,
    in_channels=1,
    data="digits",
    validation=0.0,
    batch=32,
    lr=0.1,
    weight_decay=5e-4,
    progress=tuple(epoch / 12 for epoch in range(13)),
    half=True,
)

# Two epochs, of which the first makes a quarter of the way: the learning rate followed the clock, see `_recorded`.
FASHION = Recipe(
    "fashion-conv-small",
    T=2,
    size=28,
    in_channels=1,
    data="fashion-mnist",
    validation=1 / 60,
    batch=64,
    lr=0.1,
    weight_decay=2e-4,
    progress=(0.0, 0.25, 1.0),
    half=True,
)

RECIPES = {
    "digits": DIGITS,
    "digits-wide": replace(DIGITS, model="digits-conv-wide"),  # not in the package: for study/squeeze
    "fashion-small": FASHION,
    "fashion-transformer": replace(
        FASHION, model="fashion-transformer", lr=0.05, progress=tuple(epoch / 4 for epoch in range(5))
    ),
    "cifar10-vgg": _cifar10("cifar10-vgg", "vgg16-quarter"),
    "cifar10-resnet": _cifar10("cifar10-resnet", "resnet19-slim"),
}
