"""Runs of a user's model that leave no trace in it: buffers, membrane state and random numbers stay as they were."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from spikeprune.model.adapter import Adapter


@contextmanager
def undisturbed(model: nn.Module, adapter: Adapter | None) -> Generator[None]:
    """Context that puts back buffers (BatchNorm's averages), membrane state and random state at its end."""
    # Clones take the buffers' places and the originals come back: writing to the originals, even the same values, would
    # upset an autograd graph that has saved them, when this runs between a forward and its backward.
    buffers = [(m, name, b) for m in model.modules() for name, b in m._buffers.items() if b is not None]
    for module, name, buffer in buffers:
        module._buffers[name] = buffer.clone()
    states = adapter.states(model) if adapter is not None else None
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    if adapter is not None:
        adapter.reset(model)
    try:
        with torch.random.fork_rng(devices=list(devices)):
            yield
    finally:
        if adapter is not None:
            adapter.restore(model, states)
        for module, name, buffer in buffers:
            module._buffers[name] = buffer
        # Weights that autocast has cast without gradient would be taken again by a forward that needs one.
        torch.clear_autocast_cache()


@contextmanager
def evaluating(model: nn.Module) -> Generator[None]:
    """Context in which the model is in eval mode; at its end every module gets its own mode back."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode


@contextmanager
def opened(
    model: nn.Module, adapter: Adapter, stand_in: Callable[[Tensor], Tensor] | None = None
) -> Generator[None]:  # fmt: skip
    """Inside this context, plain neurons run in PyTorch functions and not in a kernel of their framework.

    A tracer can follow PyTorch functions only.
    Args: stand_in: a function that replaces the forward of these neurons, if given.
    """
    replaced: list[tuple[nn.Module, Any]] = []
    missing = object()
    for neuron in adapter.neurons(model).values():
        forward = adapter.plain_forward(neuron)
        if forward is not None:
            replaced.append((neuron, neuron.__dict__.get("forward", missing)))
            neuron.__dict__["forward"] = forward if stand_in is None else stand_in
    try:
        yield
    finally:
        for neuron, kept in replaced:
            if kept is missing:
                del neuron.__dict__["forward"]
            else:
                neuron.__dict__["forward"] = kept
