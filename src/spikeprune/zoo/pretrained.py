"""Networks that come trained: weights, and all that is needed to use them, in files of this package.

    model = sp.pretrained("fashion-small")

docs/pretrained.md describes them; study/pretrained/ trains them anew.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, final

from spikeprune.core.errors import InvalidValue, UserError, unknown
from spikeprune.zoo.registry import build

if TYPE_CHECKING:
    from torch import Tensor

    from spikeprune.zoo.net import SpikingNet

FOLDER = Path(__file__).parents[1] / "pretrained"
_KEY = "card"


@final
@dataclass(frozen=True)
class Card:
    """The description that a file of trained weights contains.

    Args:
        name: as in `names()`.
        model, classes, T, size, in_channels: the arguments of `sp.model` that build the network.
        data: the dataset, as in `sp.datasets()`.
        data_checksum: SHA-256 over its decoded inputs and labels, as `Dataset.checksum`.
        scale, mean, std: the preprocessing; the network takes (pixels / scale - mean) / std.
        validation: share of the training images that was held out, drawn with seed 0. Take images for calibration from
            the rest, never from the test split.
        counts: images in each split; "test" is the number that `accuracy` was measured on.
        accuracy: on the test split, in batches of 250.
        validation_accuracy: on the images held out; None if there were none.
        epochs, seed, cpu_hours: of the training. The last one is a process time on a machine that others used as well.
        recipe: the command that trains the network anew.
        notes: what a reader of results has to know, such as absent images.
        licence: of the weights, and where the data comes from.
    """

    name: str
    model: str
    classes: int
    T: int
    size: int
    in_channels: int
    data: str
    data_checksum: str
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    validation: float
    counts: dict[str, int]
    accuracy: float
    validation_accuracy: float | None
    epochs: int
    seed: int
    cpu_hours: float
    recipe: str
    notes: tuple[str, ...]
    licence: str

    def metadata(self) -> dict[str, str]:
        """The header of a safetensors file that `read_card` reads back."""
        return {_KEY: json.dumps(vars(self))}


def names() -> list[str]:
    """The names that `pretrained` knows, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.safetensors"))


def pretrained(name: str) -> "SpikingNet":
    """A trained network in eval mode, on the CPU, in float32; neither data nor a network connection is needed.

    It takes images [N, C, H, W], normalised as `card(name)` says, and returns logits per step [T, N, classes].

    Args:
        name: one of `names()`, which `spikeprune list pretrained` prints.

    Raises: UnknownName; UserError if the file is damaged; MissingDependency where SpikingJelly is not installed.

    Examples:
        >>> net = sp.pretrained("digits")
        >>> net(torch.rand(2, 1, 8, 8)).shape
        torch.Size([4, 2, 10])
    """
    found = card(name)
    model = build(found.model, found.classes, found.T, found.size, found.in_channels)
    model.load_state_dict(_weights(file_of(name)))
    return model.eval()


def card(name: str) -> Card:
    """The description of a trained network.

    Raises: UnknownName; UserError if the file is damaged.
    """
    return read_card(file_of(name))


def file_of(name: str) -> Path:
    """The safetensors file of a trained network. Raises: UnknownName."""
    if name not in names():
        raise unknown("pretrained network", name, names(), "(`spikeprune list pretrained` lists all)")
    return FOLDER / f"{name}.safetensors"


@cache
def read_card(path: Path) -> Card:
    """The card in the header of a file of weights.

    Raises: UserError if the file is damaged; InvalidValue if it holds no card.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:  # the header alone: torch need not be imported
            header: dict[str, str] = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path.name} is missing or damaged; install spikeprune again to get the file back") from error
    if _KEY not in header:
        raise InvalidValue(f"{path.name} has no model card in its header; it is no file of trained weights from here")
    fields = json.loads(header[_KEY])
    return Card(**fields | {key: tuple(fields[key]) for key in ("mean", "std", "notes")})


def _weights(path: Path) -> "dict[str, Tensor]":
    """The state_dict of a file. Some files hold weights as float16, which they equal exactly."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        found = load(path.read_bytes())
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path.name} is missing or damaged; install spikeprune again to get the file back") from error
    return {key: value.float() if value.is_floating_point() else value for key, value in found.items()}
