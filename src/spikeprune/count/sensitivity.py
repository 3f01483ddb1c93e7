"""How much accuracy each layer loses when it alone is pruned."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from spikeprune.core.allocate import kept
from spikeprune.core.errors import InvalidValue
from spikeprune.core.select import best_of_rows, keep_top
from spikeprune.model.adapter import find_adapter
from spikeprune.model.examples import undisturbed
from spikeprune.model.prunable import normed_by_row, prunable


def sensitivity(
    model: nn.Module,
    data: Iterable[Any],
    sparsities: Sequence[float] = (0.5, 0.8, 0.9, 0.95, 0.98),
) -> dict[str, dict[float, float]]:
    """Accuracy when one layer at a time is pruned by magnitude, without any training.

    Args:
        model: left as it was; runs in eval mode.
        data: (input, target) batches; outputs [N, classes], or [T, N, classes], which are averaged over T.
        sparsities: shares of the layer to cut, each in [0, 1).
    Returns: parameter name -> {sparsity: accuracy, a fraction}; the key "" holds {0.0: accuracy of the whole model}.
    Raises: InvalidValue for an empty `data` or a sparsity outside [0, 1).

    Examples:
        >>> curves = sp.sensitivity(model, data, sparsities=(0.5, 0.9))
        >>> list(curves)  # "" is the whole network
        ['', '0.weight', '4.weight', '8.weight']
    """
    bad = [s for s in sparsities if not 0 <= s < 1]
    if bad:
        raise InvalidValue(f"sparsities must be in [0, 1), got {bad[0]}; for 80 % pass 0.8")
    batches = [(x, y) for x, y in data]
    if not batches:
        raise InvalidValue("data holds no batch; pass an iterable of (input, target) pairs")
    result = {"": {0.0: accuracy(model, batches)}}
    parameters = prunable(model)
    normed = normed_by_row(model, parameters)
    for name, parameter in parameters.items():
        whole = parameter.data.clone()
        result[name] = {}
        try:
            for share in sparsities:
                mask = keep_top({name: whole.abs()}, kept(whole.numel(), share))[name]
                if name in normed:
                    mask |= best_of_rows(whole.abs(), torch.ones_like(mask))
                parameter.data.copy_(whole * mask)
                result[name][float(share)] = accuracy(model, batches)
        finally:
            parameter.data.copy_(whole)
    return result


@torch.no_grad()
def accuracy(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Share of right answers in eval mode; membrane state and the training mode are put back."""
    adapter = find_adapter(model)
    training = model.training
    right = total = 0
    model.eval()
    try:
        for x, y in batches:
            with undisturbed(model, adapter):
                output = model(x)
            logits = output.mean(0) if output.ndim == 3 else output
            right += int((logits.argmax(1) == y).sum())
            total += y.numel()
    finally:
        model.train(training)
    return right / total
