"""Whole channels as the pattern of a squeeze: which channels are kept, before the remaining weights are solved."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from spikeprune.model.adapter import Adapter
from spikeprune.model.examples import undisturbed
from spikeprune.model.prunable import prunable
from spikeprune.prune.once import prune
from spikeprune.squeeze.batches import first_images
from spikeprune.squeeze.network import snapshot
from spikeprune.squeeze.settings import SqueezeSettings
from spikeprune.squeeze.statistics import evaluating


def with_channels(
    model: nn.Module, adapter: Adapter, data: Iterable[Any], settings: SqueezeSettings, time: str | None = None
) -> tuple[list[tuple[Tensor, Any]], SqueezeSettings]:
    """The data, read once, and settings that hold the masks of the channels to keep. The model stays as it is.

    Channels are ranked by the norm of their filters (the method "weight-norm"), over all layers together. The masks
    also cut the weights that read a channel which is silent now, so that the solve makes up for it.

    Raises: InvalidValue where the model's channels cannot be followed.
    """
    batches = first_images(data, settings.images, model, adapter, time)
    pairs = list(zip(batches.inputs, batches.targets, strict=True))
    if not settings.sparsity:
        return pairs, replace(settings, pattern="weight")
    put_back = snapshot(model)
    try:
        before = _fed(model, adapter, batches.inputs)
        found = prune(
            model,
            "weight-norm",
            settings.sparsity,
            data=pairs[:1],
            pattern="channel",
            budget=settings.budget,
            include=settings.include,
            exclude=settings.exclude,
            floor=settings.floor,
            seed=settings.seed,
        )
        after = _fed(model, adapter, batches.inputs)
    finally:
        put_back()
    readers = prunable(model, settings.include, settings.exclude)
    whole = {n: torch.ones_like(p, dtype=torch.bool) for n, p in readers.items()}
    masks = {n: m & _reads(model, n, before, after) for n, m in {**whole, **found}.items()}
    return pairs, replace(settings, masks=masks, pattern="weight")


def _fed(model: nn.Module, adapter: Adapter | None, inputs: Iterable[Tensor]) -> dict[str, Tensor]:
    """Weight name -> which input channels of its layer are ever other than 0."""
    found: dict[str, Tensor] = {}

    def see(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def look(layer: nn.Module, args: tuple[Any, ...]) -> None:
            axis = -1 - (len(layer.kernel_size) if isinstance(layer, _ConvNd) else 0)
            x = args[0].detach() != 0
            fed = x.movedim(axis, -1).flatten(0, -2).any(0)
            found[name] = found[name] | fed if name in found else fed

        return look

    layers = {f"{n}.weight".lstrip("."): m for n, m in model.named_modules() if isinstance(m, (_ConvNd, nn.Linear))}
    handles = [m.register_forward_pre_hook(see(n)) for n, m in layers.items()]
    try:
        with torch.no_grad(), evaluating(model):
            for x in inputs:
                with undisturbed(model, adapter):
                    model(x)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _reads(model: nn.Module, name: str, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> Tensor:
    """Mask of a weight that is False for each input channel that fell silent: it was fed before and is not after.

    It holds one value for each output and input channel, and is broadcast over the kernel.
    Args: before, after: from `_fed`, before and after the channels were cut.
    """
    weight = model.get_parameter(name)
    if name not in before or weight.ndim < 2:
        return torch.ones((), dtype=torch.bool, device=weight.device)
    fed = ~before[name] | after[name]
    groups = len(fed) // weight.shape[1]
    own = fed.view(groups, -1).repeat_interleave(weight.shape[0] // groups, 0)  # [O, I / groups]
    return own.view(*own.shape, *([1] * (weight.ndim - 2)))
