"""A model called without a trace of it left, and where it has its samples."""

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spikeprune.core.errors import InvalidValue
from spikeprune.model.adapter import Adapter
from spikeprune.model.examples import undisturbed

log = logging.getLogger("spikeprune")


@dataclass(frozen=True)
class Batch:
    """Where the samples lie: the axis N of the input, and of the output."""

    input: int
    output: int


def call(model: nn.Module, adapter: Adapter, x: Tensor) -> Tensor:
    """The model's output for x, from a reset state, leaving everything as it was.

    Raises: InvalidValue for a model that returns something else than one tensor.
    """
    with torch.no_grad(), undisturbed(model, adapter):
        output: Any = model(x)
    if not isinstance(output, Tensor):
        raise InvalidValue(
            f"{type(model).__name__} returns {type(output).__name__}, and an exported model returns one tensor; wrap "
            "it in a module that returns one"
        )
    return output


def find_batch(model: nn.Module, adapter: Adapter, example: Tensor) -> Batch | None:
    """The axes of the samples, the first ones if there are several; see `find_batches`."""
    return next(iter(find_batches(model, adapter, example)), None)


def find_batches(model: nn.Module, adapter: Adapter, example: Tensor) -> list[Batch]:
    """The axes of the samples: the axis of the input along which two halves in either order give two output halves.

    There may be two, where all neurons fire or rest at every step, so that steps do not depend on each other either.
    """
    top = max(1.0, float(example.abs().max()))
    other = generated(tuple(example.shape), top, seed=1)
    # A loud example may reset every neuron at every step, and then steps do not depend on each other either.
    quiet = [generated(tuple(example.shape), scale * top, seed=2) for scale in (0.5, 0.2)]
    inputs = [example, *quiet]
    alone = [call(model, adapter, example)]
    found: list[Batch] = []
    for axis in range(min(2, example.dim())):
        places = list(range(alone[0].dim()))
        try:
            for number, x in enumerate(inputs):
                if number == len(alone):
                    alone.append(call(model, adapter, x))
                pairs = [call(model, adapter, torch.cat(pair, axis)) for pair in ((x, other), (other, x))]
                places = [place for place in places if _apart(alone[number], pairs, place)]
                if not places:
                    break
        except Exception as error:  # a model may refuse any other shape in words of its own
            log.debug("axis %d is not the batch: %s", axis, error)
            continue
        found += [Batch(axis, place) for place in places[:1]]
    return found


def _apart(alone: Tensor, pairs: list[Tensor], place: int) -> bool:
    """Whether an output stands unchanged, along an axis, first in one pair's output and last in the other one's."""
    size = alone.shape[place]
    doubled = tuple(2 * n if i == place else n for i, n in enumerate(alone.shape))
    if any(tuple(pair.shape) != doubled for pair in pairs):
        return False
    halves = pairs[0].narrow(place, 0, size), pairs[1].narrow(place, size, size)
    return all(torch.allclose(half, alone, rtol=1e-3, atol=1e-4) for half in halves)


def generated(shape: tuple[int, ...], scale: float, seed: int) -> Tensor:
    """Random input, a third of it 0, that is the same at every call."""
    x = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * scale
    return x * (x > scale / 3)
