"""A node of the graph run again on other values, to see where it moves them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from spikeprune.model.operations import ELEMENTWISE, REDUCTIONS
from spikeprune.model.trace import Node


def is_elementwise(node: Node) -> bool:
    """Whether the node is a function that works value by value."""
    return node.module is None and node.name in ELEMENTWISE


def rerun(node: Node, values: Sequence[Tensor]) -> Any:
    """The result of a node for other `values`. None if it cannot be run again because an argument is unknown."""
    try:
        if node.module is not None:
            return node.module.forward(*values)
        if node.name in REDUCTIONS:
            return _reduced(node, values[0])
        supply = iter(values)
        args = [_with_tensors(a, supply) for a in node.arguments[0]]
        kwargs = {k: _with_tensors(v, supply) for k, v in node.arguments[1].items()}
        if args and isinstance(args[0], float):  # a state that holds one number everywhere
            args[0] = values[0].new_full((), args[0])
        function = getattr(torch.Tensor, node.name, None) or getattr(torch, node.name)
        return function(*args, **kwargs)
    except (RuntimeError, TypeError, IndexError, AttributeError, ValueError):
        return None  # the arguments held a tensor that the trace did not keep


def replay(node: Node, values: Sequence[Tensor]) -> Tensor | None:
    """The result for other `values` of a node that only moves values; a dimension of equal entries gets size 1.

    None if it mixes values, or if its results differ from each other.
    """
    results = rerun(node, values)
    found = [_compressed(r) for r in (results if isinstance(results, (tuple, list)) else [results]) if r is not None]
    if not found or any(not torch.equal(found[0], other) for other in found[1:]):
        return None
    if isinstance(results, Tensor) and tuple(results.shape) != node.shape:
        return None
    return found[0]


def _reduced(node: Node, value: Tensor) -> Tensor:
    args, kwargs = node.arguments
    dim = args[1] if len(args) > 1 else kwargs.get("dim")
    keep = args[2] if len(args) > 2 else kwargs.get("keepdim", False)
    dims = tuple(range(value.dim())) if dim is None else (dim,) if isinstance(dim, int) else tuple(dim)
    high, low = value.amax(dims, keep), value.amin(dims, keep)
    if not torch.equal(high, low):
        raise ValueError("mixes values")
    return high


def _with_tensors(value: Any, supply: Any) -> Any:
    if value is None:
        return next(supply, None)
    if isinstance(value, tuple):
        return tuple(_with_tensors(v, supply) for v in value)  # pyright: ignore[reportUnknownVariableType]
    return value


def _compressed(value: Tensor) -> Tensor:
    for dim in range(value.dim()):
        first = value.narrow(dim, 0, 1)
        if value.shape[dim] > 1 and torch.equal(first.expand_as(value), value):
            value = first
    return value
