"""The activity of a network's layers on images: features and their consistency, entropy, and activity over time.

Shapes: T time steps, N images, C channels, K classes.
"""

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from spikeprune.core.errors import InvalidValue
from spikeprune.data import Dataset, batches
from spikeprune.lab.train.network import TimedNetwork
from spikeprune.record.analysis import ClassConsistency

_BINS = 16


@final
@dataclass(frozen=True)
class SeenActivity:
    """The activity of every neuron layer: features [N, C], and spikes by image and time step [N, T]; labels [N]."""

    features: Mapping[str, Tensor]
    activity: Mapping[str, Tensor]
    labels: Tensor


def observe(
    network: TimedNetwork, data: Dataset, split: Literal["train", "test"], images: int, batch: int
) -> SeenActivity:
    """Show the first `images` of a split, not augmented, in eval mode; nothing of the network changes.

    Raises: InvalidValue if no module is a neuron.
    """
    neurons = network.adapter.neurons(network.model)
    if not neurons:
        raise InvalidValue(
            f"analyze reads the spikes of neuron modules, and {type(network.model).__name__} has none that an adapter "
            "knows: its neurons are found by their spike functions; an adapter tells them (CONTRIBUTING.md)"
        )
    seen: dict[str, list[Tensor]] = {name: [] for name in neurons}
    whole = {name: network.adapter.multi_step(module) for name, module in neurons.items()}

    def keeper(name: str) -> Any:
        def keep(_: nn.Module, __: Any, output: Any) -> None:
            spikes = (output[0] if isinstance(output, tuple) else output).detach()
            seen[name].append(spikes if whole[name] else spikes.unsqueeze(0))

        return keep

    handles = [module.register_forward_hook(keeper(name)) for name, module in neurons.items()]
    features: dict[str, list[Tensor]] = {name: [] for name in neurons}
    activity: dict[str, list[Tensor]] = {name: [] for name in neurons}
    labels: list[Tensor] = []
    training, device = network.model.training, next(network.model.parameters()).device
    network.model.eval()
    try:
        with torch.no_grad():
            feed = batches(data, split, batch, device=device)
            for x, target in itertools.islice(feed, math.ceil(images / batch)):
                network(x, data.time_first)
                for name, parts in seen.items():
                    if parts:
                        spikes = torch.cat(parts)
                        features[name].append(feature(spikes).cpu())
                        activity[name].append(spikes.double().flatten(2).sum(2).T.cpu())
                    parts.clear()
                labels.append(target.cpu())
    finally:
        for handle in handles:
            handle.remove()
        network.adapter.reset(network.model)
        network.model.train(training)
    called = [name for name in neurons if features[name]]
    return SeenActivity(
        {name: torch.cat(features[name])[:images] for name in called},
        {name: torch.cat(activity[name])[:images] for name in called},
        torch.cat(labels)[:images],
    )


def feature(spikes: Float[Tensor, "T N C *space"]) -> Float[Tensor, "N C"]:
    """Spikes of each channel, summed over time and space, over (T H W)."""
    return spikes.double().flatten(3).mean(3).mean(0) if spikes.dim() > 3 else spikes.double().mean(0)


def inverted_min_max(features: Float[Tensor, "N C"]) -> tuple[Float[Tensor, "M C"], Tensor]:
    """(max - x) / (max - min) of each image, and which images it exists for: a constant one has none.

    A silent channel becomes 1, so that cosines of mostly silent layers come near 1.
    Source: the public code of arXiv:2311.16141 (feature_extraction.py), which gives nan for a constant image.
    """
    high, low = features.amax(1, keepdim=True), features.amin(1, keepdim=True)
    there = (high > low)[:, 0]
    return ((high - features) / (high - low).clamp_min(1e-300))[there], there


def consistency(
    train: Float[Tensor, "N C"], train_labels: Int[Tensor, "N"],
    test: Float[Tensor, "M C"], test_labels: Int[Tensor, "M"], classes: int,
) -> ClassConsistency:  # fmt: skip
    """How alike a class's features are, within a split and from the training to the test images.

        variance[k] = mean over channels of the variance (1/n) over the images of class k
        cosine[k]   = cos(mean train feature of k, mean test feature of k)
        centred[k]  = the same after taking the mean of all class means off each side

    Returns: lists over classes and the means of what exists in them; None where a class is absent or a mean is 0.
    """
    sides = [_by_class(train, train_labels, classes), _by_class(test, test_labels, classes)]
    centres = [torch.stack([m for m, _ in side if m is not None]).mean(0) for side in sides]
    raw = [_cosine(a, b) for (a, _), (b, _) in zip(*sides, strict=True)]
    centred = [
        None if a is None or b is None else _cosine(a - centres[0], b - centres[1])
        for (a, _), (b, _) in zip(*sides, strict=True)
    ]
    variances = [tuple(v for _, v in side) for side in sides]
    return ClassConsistency(
        variance_train=variances[0],
        variance_test=variances[1],
        cosine=tuple(raw),
        cosine_centred=tuple(centred),
        mean_variance_train=mean_of(variances[0]),
        mean_variance_test=mean_of(variances[1]),
        mean_cosine=mean_of(raw),
        mean_cosine_centred=mean_of(centred),
    )


def _by_class(features: Tensor, labels: Tensor, classes: int) -> list[tuple[Tensor | None, float | None]]:
    """(mean feature, mean variance) of each class."""
    found: list[tuple[Tensor | None, float | None]] = []
    for k in range(classes):
        mine = features[labels == k].double()
        found.append((mine.mean(0), float(mine.var(0, correction=0).mean())) if len(mine) else (None, None))
    return found


def _cosine(a: Tensor | None, b: Tensor | None) -> float | None:
    if a is None or b is None:
        return None
    size = float(a.norm() * b.norm())
    # A class mean that equals the centre up to rounding has no direction.
    return max(-1.0, min(1.0, float(a @ b) / size)) if size > 1e-24 else None


def mean_of(values: Iterable[float | None]) -> float | None:
    """Mean of what is there; None of nothing."""
    there = [value for value in values if value is not None]
    return math.fsum(there) / len(there) if there else None


def entropy(features: Float[Tensor, "N C"]) -> Float[Tensor, "C"]:
    """The entropy of each channel over images, in bits.

    -sum p log2 p    over 16 equal bins of [0, 1]; 0 for a channel that never changes, 4 at most
    """
    bins = (features.double() * _BINS).long().clamp(0, _BINS - 1)
    shares = torch.stack([(bins == b).double().mean(0) for b in range(_BINS)])
    return -(shares * shares.clamp_min(1e-300).log2()).sum(0)


def correlation(a: Tensor, b: Tensor) -> float | None:
    """Pearson's r; None for fewer than three values, or where one side is constant."""
    a, b = a.double() - a.double().mean(), b.double() - b.double().mean()
    size = float(a.norm() * b.norm())
    return max(-1.0, min(1.0, float(a @ b) / size)) if len(a) > 2 and size > 1e-18 else None
