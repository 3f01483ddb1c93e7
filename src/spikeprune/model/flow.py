"""The flow through each weight from the inputs to the outputs. It needs no data and no loss.

R = the sum of all outputs of the network, in eval mode, with the absolute values of its parameters and buffers in
place of them and an input of ones. The flow of a weight is dR / d|w|. Neurons hand on their input.
"""

import math
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from spikeprune.core.errors import InvalidValue, first_line
from spikeprune.model.adapter import Adapter
from spikeprune.model.arguments import Arguments, tensors
from spikeprune.model.examples import evaluating, opened, undisturbed
from spikeprune.model.hooks import OwnHook
from spikeprune.model.trace import Graph


def ones_of(given: Arguments) -> Arguments:
    """The arguments of a call with all values replaced by 1, in tensors that take no memory."""

    def ones(value: Any) -> Any:
        return value.detach().new_ones(()).expand(value.shape) if isinstance(value, Tensor) else value

    return Arguments(tuple(map(ones, given.positional)), {key: ones(value) for key, value in given.named.items()})


def refuse_flow(graph: Graph, parameters: Mapping[str, nn.Parameter]) -> None:
    """Raises: InvalidValue for a traced model in which a neuron cannot hand on what it gets."""
    found = next((node.name for node in graph.nodes if node.kind == "neuron" and node.module is None), None)
    if found is not None:
        raise InvalidValue(
            f"the flow of a network goes through neurons that are modules, and {found!r} was found by its spike "
            "function; register an adapter (spikeprune.integrations.register_adapter), or take 'snip' or 'magnitude'"
        )
    inner = next((name for name in graph.inner if name in parameters), None)
    if inner is not None:
        raise InvalidValue(
            f"{inner!r} is multiplied inside of a neuron, so no flow through it is known; pass exclude=[{inner!r}], or "
            "take 'snip' or 'magnitude'"
        )


def flow(
    model: nn.Module, adapter: Adapter | None, masks: Mapping[str, Tensor], ones: Arguments
) -> dict[str, Tensor]:  # fmt: skip
    """Name -> dR / d|w| of each weight that has a mask, also of its dead entries, in float64.

    Args:
        masks: parameter name -> bool; the others are not weights here.
        ones: the model's input, from `ones_of`.
    Raises: InvalidValue if nothing flows to the outputs, or more than a number can hold.
    """
    wide = Arguments(tuple(map(_wide, ones.positional)), {key: _wide(value) for key, value in ones.named.items()})
    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        stack.enter_context(undisturbed(model, adapter))
        if adapter is not None:
            stack.enter_context(opened(model, adapter, _identity))  # plain neurons need not even run
            stack.enter_context(_handing_on(model, adapter))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autocast(next(iter(masks.values())).device.type, enabled=False))
        values = {n: _wide(v.detach().abs()) for n, v in (*model.named_parameters(), *model.named_buffers())}
        for name, mask in masks.items():
            values[name] = (values[name] * mask).requires_grad_()
        total = sum(z.sum() for z in tensors(_called(model, values, wide)) if z.is_floating_point())
        amount = float(total.detach()) if isinstance(total, Tensor) and total.requires_grad else 0.0
        if not isinstance(total, Tensor) or amount == 0 or not math.isfinite(amount):
            raise InvalidValue(
                f"from an input of ones {amount:g} flows to the outputs of {type(model).__name__}, which ranks no "
                "weight; take a lower sparsity, or 'snip' or 'magnitude'"
            )
        of = [values[name] for name in masks]
        found = cast("Sequence[Tensor | None]", torch.autograd.grad(total, of, allow_unused=True))
    return {n: torch.zeros_like(values[n]) if g is None else g for n, g in zip(masks, found, strict=True)}


def _called(model: nn.Module, values: Mapping[str, Tensor], given: Arguments) -> Any:
    try:
        return torch.func.functional_call(model, dict(values), given.positional, dict(given.named))
    except RuntimeError as error:
        raise InvalidValue(
            f"{type(model).__name__} cannot run on ones in float64, as its flow needs: "
            f"{first_line(error, 120)}; take 'snip' or 'magnitude'"
        ) from error


def _wide(value: Any) -> Any:
    """In float64, where products over many layers have room; in float32 on devices that know no float64."""
    if not (isinstance(value, Tensor) and value.is_floating_point()):
        return value
    return value.to(torch.float32 if value.device.type == "mps" else torch.float64)


@contextmanager
def _handing_on(model: nn.Module, adapter: Adapter) -> Generator[None]:
    """Inside this context, neurons return their input in place of their spikes, and of potentials they return too."""

    def hook(neuron: nn.Module, positional: tuple[Any, ...], named: dict[str, Any], result: Any) -> Any:
        x = Arguments(positional, named).values[0]
        if not any(value.shape == x.shape for value in tensors(result) if value.is_floating_point()):
            raise InvalidValue(
                f"{type(neuron).__name__} returns nothing of its input's shape {list(x.shape)}, so it cannot hand on "
                "what it gets; take 'snip' or 'magnitude'"
            )
        return _in_place_of(result, x)

    hooks = [n.register_forward_hook(OwnHook(hook), with_kwargs=True) for n in adapter.neurons(model).values()]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()


def _identity(x: Tensor) -> Tensor:
    return x


def _in_place_of(result: Any, x: Tensor) -> Any:
    if isinstance(result, Tensor):
        return x if result.shape == x.shape and result.is_floating_point() else result
    if isinstance(result, (tuple, list)):
        values = [_in_place_of(value, x) for value in result]
        made: Any = type(result)
        return made(*values) if hasattr(result, "_fields") else made(values)  # a named tuple takes them one by one
    return result
