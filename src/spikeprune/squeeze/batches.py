"""The calibration images: the first ones of whatever data the user gives."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from spikeprune.core.errors import InvalidValue, UserError
from spikeprune.model.adapter import Adapter
from spikeprune.model.axes import not_told, over_time, samples_axis, samples_of, seen_by_neurons, unknown_parts
from spikeprune.model.trace import Graph, trace
from spikeprune.squeeze.statistics import evaluating


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


def first_images(
    data: Iterable[Any], images: int, model: nn.Module, adapter: Adapter, time: str | None = None
) -> Batches:  # fmt: skip
    """Batches of the first `images` images; the last one is cut.

    Args:
        data: inputs or (input, target) pairs, or one tensor, which is one batch.
        time: where time is in them, if it is told: "first", "batch-first" or "last".
    Raises: InvalidValue for no data, other things than tensors, values that are not finite, and
        batches whose axis of images cannot be told.
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
        axis = _axis(x, target, images - count, model, adapter, time)
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


def _axis(
    x: Tensor, target: Any, wanted: int, model: nn.Module, adapter: Adapter, time: str | None
) -> int | None:  # fmt: skip
    """The axis of a batch that counts images: 0, or 1 behind time. None if T = N and nothing has to be cut.

    Raises: InvalidValue where it cannot be told; if the model does not take the batch.
    """
    if x.ndim < 2:
        return 0
    if time is not None:
        return samples_axis(time)
    known = isinstance(target, Tensor) and target.ndim > 0
    count = samples_of(x, target, set(), None, plain=False) if known else None
    if count in x.shape[:2] and x.shape[0] != x.shape[1]:
        return int(x.shape[0] != count)
    graph = traced(model, adapter, x)
    seen = seen_by_neurons(graph, adapter)
    if count is None:
        output = x.new_empty(graph.nodes[graph.outputs[0]].shape)
        count = samples_of(x, target, seen, output, plain=not unknown_parts(model, adapter))
    axes = [axis for axis in (0, 1) if x.shape[axis] == count]
    alike = len(axes) > 1 and over_time(graph, adapter)
    if alike and x.shape[0] > wanted:  # only now it matters which of two equal axes is which
        axes = [axis for axis in axes if _fewer_reach_neurons(x, axis, model, adapter)]
        alike = False
    if not axes or (len(axes) > 1 and not alike):
        raise not_told(x, seen)
    return None if alike else axes[0]


def _fewer_reach_neurons(x: Tensor, axis: int, model: nn.Module, adapter: Adapter) -> bool:
    """Whether the neurons see one sample fewer where the axis is shorter by one. Features cannot be left out."""
    fewer = x.shape[axis] - 1
    try:
        graph = traced(model, adapter, x.narrow(axis, 0, fewer))
    except InvalidValue:
        return False
    return seen_by_neurons(graph, adapter) == {fewer}


def traced(model: nn.Module, adapter: Adapter | None, example: Tensor) -> Graph:
    """The graph of one forward in eval mode.

    Raises: InvalidValue if the model does not take the example.
    """
    try:
        with evaluating(model):
            return trace(model, example, adapter=adapter)
    except UserError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise InvalidValue(
            f"the model cannot run on an input of shape {list(example.shape)}: {first[:120]}; "
            "give the batches that it was trained on"
        ) from error
