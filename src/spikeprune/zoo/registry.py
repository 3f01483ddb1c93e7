"""The registry of networks. It imports no SNN framework until a network is built."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spikeprune.core.errors import InvalidValue, MissingDependency, unknown

if TYPE_CHECKING:
    from spikeprune.zoo.net import SpikingNet


@dataclass(frozen=True)
class Spec:
    """The arguments of a builder: number of classes, time steps, and images of `channels` x `size` x `size`."""

    classes: int
    T: int
    size: int
    channels: int


Builder = Callable[[Spec], "SpikingNet"]


@dataclass(frozen=True)
class Entry:
    builder: Builder
    channels: int
    min_size: int


_ENTRIES: dict[str, Entry] = {}


def register(name: str, *, channels: int, min_size: int = 1) -> Callable[[Builder], Builder]:
    """Puts a network into the zoo under `name`; `channels` is used where the caller names none."""

    def add(builder: Builder) -> Builder:
        assert name not in _ENTRIES, f"two networks are called {name}"
        _ENTRIES[name] = Entry(builder, channels, min_size)
        return builder

    return add


def names() -> list[str]:
    """The names that `build` knows, sorted.

    Examples:
        >>> "vgg16-weights" in sp.models()
        True
    """
    return sorted(_ENTRIES)


def description_of(name: str) -> str:
    """The description of one of `names()` in one line."""
    return " ".join((_ENTRIES[name].builder.__doc__ or "").partition("\n\n")[0].split())


def build(name: str, classes: int = 10, T: int = 5, size: int = 32, in_channels: int | None = None) -> "SpikingNet":
    """A zoo network with fresh weights, in multi-step mode.

    It takes images [N, C, H, W], which it repeats over its own `T` steps, or sequences [T, N, C, H, W] of any length,
    and returns logits per step [T, N, classes]. Its attribute `readout` names the loss (zoo/readout.py).

    Args:
        name: one of `names()`.
        classes: number of outputs, at least 1.
        T: time steps per image, at least 1.
        size: height and width of the images in pixels.
        in_channels: channels of the images; None takes what the network is meant for (1 for the small ones, else 3).

    Raises: UnknownName, InvalidValue, and MissingDependency where SpikingJelly is not installed.

    Examples:
        >>> net = sp.model("digits-conv", classes=10, T=4, size=8)
        >>> net(torch.rand(2, 1, 8, 8)).shape
        torch.Size([4, 2, 10])
    """
    if name not in _ENTRIES:
        raise unknown("model", name, _ENTRIES, "`spikeprune list models` lists all")
    entry = _ENTRIES[name]
    channels = entry.channels if in_channels is None else in_channels
    lowest = {"classes": (classes, 1), "T": (T, 1), "size": (size, entry.min_size), "in_channels": (channels, 1)}
    for what, (value, least) in lowest.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InvalidValue(f"{what} of {name} must be a whole number of at least {least}, got {value!r}")
    try:
        return entry.builder(Spec(classes, T, size, channels))
    except ModuleNotFoundError as missing:
        if missing.name is None or missing.name.split(".")[0] != "spikingjelly":
            raise
        raise MissingDependency(
            f"the network {name} is built on SpikingJelly, which is not installed; try: pip install 'spikeprune[demo]'"
        ) from missing
