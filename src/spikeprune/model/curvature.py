"""The loss's Hessian times its gradient, by differentiating the gradient once more, on batches outside of training."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from spikeprune.core.errors import InvalidValue, first_line
from spikeprune.model.adapter import Adapter
from spikeprune.model.examples import undisturbed

Reduce = Callable[[Tensor], Tensor]


def curvature(
    model: nn.Module,
    adapter: Adapter | None,
    masks: Mapping[str, Tensor],
    batches: Sequence[Any],
    loss: Callable[[Any, Any], Tensor],
    softening: float,
    reduce: Reduce,
) -> dict[str, Tensor]:
    """Name -> H g of each weight that has a mask: g = dL/dw of alive weights, H = d2L/dw2, L the sum of the losses.

    The model keeps its mode, and nothing of it changes. A batch is seen twice, with the same random numbers.

    Args:
        batches: (input, target) pairs.
        softening: what outputs are divided by before the loss.
        reduce: sums a tensor over ranks.
    Raises: InvalidValue if all gradients are 0, or the gradient of this model cannot be differentiated.
    """
    weights = {n: p for n, p in model.named_parameters() if n in masks}
    gradient = {n: torch.zeros_like(p) for n, p in weights.items()}
    product = {n: torch.zeros_like(p) for n, p in weights.items()}
    for batch in batches:
        found = _gradients(model, adapter, weights, batch, loss, softening)
        for name, value in found.items():
            gradient[name] += value.detach() * masks[name]
    gradient = {n: reduce(g) for n, g in gradient.items()}
    if not any(bool(g.any()) for g in gradient.values()):
        raise InvalidValue(
            f"the gradient of the loss is 0 for every prunable weight of {type(model).__name__}, so its curvature "
            "ranks none; check the loss and the data, or take 'magnitude'"
        )
    for batch in batches:
        found = _gradients(model, adapter, weights, batch, loss, softening, again=True)
        if found:
            along = sum((gradient[n] * value).sum() for n, value in found.items())
            for name, value in _differentiated(model, along, weights).items():
                product[name] += value
    return {n: reduce(value) for n, value in product.items()}


def _gradients(
    model: nn.Module,
    adapter: Adapter | None,
    weights: Mapping[str, nn.Parameter],
    batch: Any,
    loss: Callable[[Any, Any], Tensor],
    softening: float,
    *,
    again: bool = False,
) -> dict[str, Tensor]:
    """The gradient of one batch's loss, as a graph if it is differentiated `again`."""
    x, target = batch if isinstance(batch, (tuple, list)) else (batch, None)
    with undisturbed(model, adapter), torch.enable_grad():
        value, of = loss(_divided(model(x), softening), target), list(weights.values())
        if not value.requires_grad:
            return {}
        # A weight that the loss does not depend on has None.
        found = cast(
            "Sequence[Tensor | None]", torch.autograd.grad(value, of, create_graph=again, allow_unused=True)
        )  # fmt: skip
    return {n: g for n, g in zip(weights, found, strict=True) if g is not None}


def _differentiated(model: nn.Module, along: Any, weights: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The gradient of `along`, taken from every leaf of its graph.

    torch.autograd.grad would go to the weights alone, and so past the node with which a function that can be
    differentiated only once raises its error.
    """
    before = [(p, p.grad) for p in model.parameters()]
    for p, _ in before:
        p.grad = None
    try:
        torch.autograd.backward(along)
        return {n: p.grad for n, p in weights.items() if p.grad is not None}
    except RuntimeError as error:
        raise InvalidValue(
            f"the gradient of {type(model).__name__} cannot be differentiated once more: "
            f"{first_line(error, 110)}; a fused model needs sp.unfuse first, "
            "for others take 'snip', which needs one derivative"
        ) from error
    finally:
        for p, grad in before:
            p.grad = grad


def _divided(outputs: Any, softening: float) -> Any:
    if isinstance(outputs, Tensor):
        return outputs / softening if softening != 1 else outputs
    if isinstance(outputs, (tuple, list)) and type(outputs) in (tuple, list):
        return type(outputs)(_divided(value, softening) for value in outputs)
    if softening == 1:
        return outputs
    raise InvalidValue(
        f"the model returns {type(outputs).__name__}, which cannot be divided by the temperature {softening:g}; "
        "return tensors, or pass temperature=1"
    )
