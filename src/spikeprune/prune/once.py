"""Pruning in one shot, with no training loop around it."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from spikeprune.core.mask import Masks
from spikeprune.core.schedule import OneShot
from spikeprune.methods.base import Method
from spikeprune.prune.pruner import Pruner


def prune(
    model: nn.Module,
    method: Method | str,
    sparsity: float = 0.9,
    data: Iterable[Any] | None = None,
    loss: Callable[[Any, Any], Tensor] | None = None,
    **pruner_keywords: Any,
) -> Masks:
    """One shot, no training loop: prunes the model in place and returns the masks.

    Args:
        model: its weights outside the masks become 0; train or eval mode and all else stay.
        sparsity: share of the prunable weights to cut.
        data: batches for methods that need evidence: inputs, or (input, target) pairs; fed as they are.
        loss: loss(output, target), for methods that need gradients.
        pruner_keywords: as for `Pruner` (allocate, pattern, budget, include, exclude, floor, seed).
    Raises: MissingEvidence if the method needs data or a loss that is not given.
    """
    pruner = Pruner(model, method, OneShot(sparsity), **pruner_keywords)
    pruner.observe(data, loss)
    pruner.cut()
    pruner.finish()
    return pruner.masks
