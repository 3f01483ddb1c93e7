"""Which dimensions of a weight and of its input and output count channels, where a layer or a function multiplies."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd  # pyright: ignore[reportPrivateUsage]

from spikeprune.model.trace import Node
from spikeprune.model.weights import is_computed


@dataclass(frozen=True)
class WeightAxes:
    """Where a multiplication has its channels.

    Attributes:
        weight: the parameter's name.
        outputs, inputs: its dimensions that count channels out and in.
        axis, source: dimension of the result and of the input that count channels, from the end.
        bias: name of the bias, if there is one.
        groups: into how many parts channels fall that do not meet.
        companions: tensors of the weight's shape that are combined with it before, such as a fixed mask.
    """

    weight: str
    outputs: int
    inputs: int
    axis: int
    source: int
    bias: str | None
    groups: int = 1
    companions: tuple[str, ...] = ()


def weight_axes(node: Node, names: Mapping[int, str], tensors: Mapping[str, Tensor]) -> WeightAxes | str:
    """The axes of a node that multiplies; or why they cannot be told, in words that follow its name.

    Args:
        names: id of a parameter or buffer -> its name.
        tensors: name -> parameter or buffer.
    """
    module = node.module
    if node.weight is None:
        return "computes its weight from what is stored" if module is not None else "multiplies with no stored weight"
    if isinstance(module, (_ConvNd, nn.Linear)):
        return _of_module(node.weight, module, names)
    if node.use is None:
        return "is no plain Conv or Linear module"
    found = _of_function(node, tensors[node.weight])
    if found is None:
        return "multiplies with its weight in a way that cannot be followed"
    outputs, inputs, axis, source, groups = found
    bias = node.weight.removesuffix("weight") + "bias"
    held = tensors.get(bias)
    fits = isinstance(held, nn.Parameter) and held.dim() == 1 and len(held) == tensors[node.weight].shape[outputs]
    return WeightAxes(
        node.weight, outputs, inputs, axis, source, bias if fits else None, groups, node.use.companions
    )  # fmt: skip


def _of_module(weight: str, module: "_ConvNd | nn.Linear", names: Mapping[int, str]) -> WeightAxes | str:
    if is_computed(module):
        return "computes its weight from what is stored"
    bias = None if module.bias is None else names[id(module.bias)]
    if isinstance(module, nn.Linear):
        return WeightAxes(weight, 0, 1, -1, -1, bias)
    axis, transposed = -(len(module.kernel_size) + 1), isinstance(module, _ConvTransposeNd)
    if transposed and module.groups != 1:
        return f"has groups={module.groups}"
    outputs = int(transposed)
    return WeightAxes(weight, outputs, 1 - outputs, axis, axis, bias, module.groups)


def _of_function(node: Node, weight: Tensor) -> tuple[int, int, int, int, int] | None:
    use = node.use
    assert use is not None
    positional, named = node.arguments
    if node.name.startswith("conv"):
        transposed, rank = "transpose" in node.name, int(node.name[-2])
        groups = positional[6] if len(positional) > 6 else named.get("groups", 1)
        if weight.dim() != rank + 2 or (transposed and groups != 1):
            return None
        return use.outputs, 1 - use.outputs, -rank - 1, -rank - 1, int(groups)
    if weight.dim() != 2:
        return None
    if node.name == "einsum":
        source = _einsum_source(positional[0], use.axis)
        return None if source is None else (use.outputs, 1 - use.outputs, use.axis, source, 1)
    return use.outputs, 1 - use.outputs, use.axis, use.axis, 1


def _einsum_source(equation: Any, axis: int) -> int | None:
    """In an equation such as "ni,oi->no", the dimension of the other operand that is summed, counted from the end."""
    if not isinstance(equation, str) or equation.count(",") != 1 or "->" not in equation:
        return None
    left, right = equation.replace(" ", "").split("->")
    own = right[axis]
    terms = left.split(",")
    weight, other = terms if own in terms[0] else reversed(terms)
    summed = [letter for letter in weight if letter != own]
    if len(summed) != 1 or summed[0] in right or other.count(summed[0]) != 1:
        return None
    return other.index(summed[0]) - len(other)


def keeps_channels(node: Node, layout: Tensor) -> Tensor | None:
    """The layout after a function that mixes values along one dimension. None if it may mix channels.

    Two kinds of functions are known: padding, and a product with a matrix that does not come from the input. Parallel
    neurons mix time steps by such a product.
    """
    positional, named = node.arguments
    if node.name == "pad":
        pads = positional[1] if len(positional) > 1 else named.get("pad", ())
        padded = range(layout.dim() - len(pads) // 2, layout.dim())
        return layout if all(layout.shape[dim] == 1 for dim in padded) else None
    if node.name in ("matmul", "__matmul__", "mm", "addmm") and len(node.traced) == 1 and layout.dim() >= 2:
        last = len(positional) - 1
        mixed = -2 if node.traced[0] == last else -1 if node.traced[0] == last - 1 else None
        if mixed is None or len(node.shape) != layout.dim() or layout.shape[mixed] != 1:
            return None
        other = -1 if mixed == -2 else -2
        return layout if layout.shape[other] in (1, node.shape[other]) else None
    return None


def by_group(atoms: Tensor, groups: int) -> Tensor:
    """Atoms as [groups, channels of each]."""
    return torch.reshape(atoms, (groups, -1))
