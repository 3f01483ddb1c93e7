"""The calibration images: the first ones of whatever data the user gives."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from spikeprune.core.errors import InvalidValue
from spikeprune.model.adapter import Adapter
from spikeprune.model.arguments import Arguments, on_call
from spikeprune.model.examples import undisturbed


@final
@dataclass(frozen=True)
class Batches:
    """Inputs as they are fed, their targets where some were given, and how many images they hold."""

    inputs: list[Tensor]
    targets: list[Any]
    images: int
    axis: int | None = 0

    def parts(self, size: int) -> list[Tensor]:
        """The inputs in batches of at most `size` images, or as they were fed where their axis cannot be told."""
        if self.axis is None:
            return self.inputs
        return [part for x in self.inputs for part in x.split(size, self.axis)]


def first_images(data: Iterable[Any], images: int, model: nn.Module, adapter: Adapter | None) -> Batches:
    """Batches of the first `images` images; the last one is cut where its axis of images can be told.

    Args:
        data: inputs or (input, target) pairs, or one tensor, which is one batch.
    Raises: InvalidValue for no data, other things than tensors, and values that are not finite.
    """
    if images < 1:
        raise InvalidValue(
            f"images must be at least 1, the number of calibration images, got {images}; the usual is 500"
        )
    inputs: list[Tensor] = []
    targets: list[Any] = []
    count, axes = 0, set[int | None]()
    for batch in [data] if isinstance(data, Tensor) else data:
        x, target = _parts(batch)
        axis = _axis(x, target, images - count, model, adapter)
        axes.add(axis)
        size = int(x.shape[axis or 0]) if x.ndim else 1
        if axis is not None and count + size > images:
            x = x.narrow(axis, 0, images - count)
            if isinstance(target, Tensor) and target.ndim and target.shape[0] == size:
                target = target[: images - count]
            size = images - count
        if x.is_floating_point() and not bool(torch.isfinite(x).all()):
            raise InvalidValue(
                f"batch {len(inputs)} of the data holds nan or infinite values, so nothing can be measured on it; "
                "check how the data is loaded and normalised"
            )
        inputs.append(x)
        targets.append(target)
        count += size
        if count >= images:
            break
    if not count:
        raise InvalidValue(
            "data holds no batch; pass an iterable of inputs or (input, target) pairs, such as a DataLoader"
        )
    return Batches(inputs, targets, count, axes.pop() if len(axes) == 1 else None)


def _parts(batch: Any) -> tuple[Tensor, Any]:
    x, target = batch, None
    if isinstance(batch, (tuple, list)) and len(batch) in (1, 2):
        x, target = batch[0], batch[1] if len(batch) == 2 else None
    if not isinstance(x, Tensor):
        raise InvalidValue(
            f"data must hold tensors or (input, target) pairs, got a batch of type {type(batch).__name__}; "
            "wrap the loader so that each batch begins with the model's input"
        )
    return x, target


def _axis(x: Tensor, target: Any, wanted: int, model: nn.Module, adapter: Adapter | None) -> int | None:
    """Which axis of a batch counts images: 0, or 1 behind time; None where it cannot be told."""
    if x.ndim < 2:
        return 0
    if isinstance(target, Tensor) and target.ndim:
        fits = [axis for axis in (0, 1) if x.shape[axis] == target.shape[0]]
        if len(fits) == 1:
            return fits[0]
    if adapter is None or not any(adapter.multi_step(m) for m in adapter.neurons(model).values()):
        return 0
    seen = _batch_sizes(model, adapter, x[:2])
    if seen == {int(x.shape[1])} and x.shape[1] != 2:
        return 1
    if seen == {2} and x.shape[1] != 2:
        return 0
    return None


def _batch_sizes(model: nn.Module, adapter: Adapter, x: Tensor) -> set[int]:
    """The batch sizes that the neurons see on an input; empty if the model does not take it."""
    seen: set[int] = set()

    def look(neuron: nn.Module, given: Arguments) -> None:
        first = given.first
        axis = 1 if adapter.multi_step(neuron) else 0
        if first.ndim > axis:
            seen.add(int(first.shape[axis]))

    hooks = [on_call(n, look) for n in adapter.neurons(model).values()]
    try:
        with torch.no_grad(), undisturbed(model, adapter):
            model(x)
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError):
        return set()
    finally:
        for hook in hooks:
            hook.remove()
    return seen
