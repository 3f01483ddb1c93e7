"""The functions of one time step, on batches of blocks [N, ...]: run again, written down as text, read back."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Functions that work value by value.
ELEMENTWISE = {
    "add", "sub", "mul", "div", "rsub", "neg", "gt", "ge", "lt", "le", "eq", "ne", "sigmoid", "tanh", "relu", "clamp",
    "clamp_min", "clamp_max", "exp", "log", "pow", "abs", "maximum", "minimum", "where", "reciprocal", "sqrt", "rsqrt",
    "sign", "sgn", "round", "floor", "trunc", "logical_and", "logical_or", "logical_not", "bitwise_and", "bitwise_or",
    "bitwise_not", "masked_fill", "heaviside", "erf", "square", "silu", "gelu", "softplus", "hardtanh", "leaky_relu",
    "_to_copy", "addcmul", "addcdiv", "lerp", "atan", "sin", "cos",
}  # fmt: skip
# Functions of whole images whose first axis is the batch.
IMAGES = {
    "max_pool2d_with_indices", "avg_pool2d", "max_pool3d_with_indices", "avg_pool3d", "_adaptive_avg_pool2d",
    "_adaptive_avg_pool3d", "upsample_nearest2d", "upsample_nearest1d", "avg_pool1d", "max_pool1d",
}  # fmt: skip
REDUCTIONS = {"mean", "sum", "amax"}


@dataclass
class Region:
    """A tensor that goes into a step: [N, *shape], gathered from other values.

    Attributes:
        sources: what it is gathered from: (kind, number, delay in steps).
        index: place of each element in the sources' blocks, one behind the other; None for the first source as it is.
    """

    shape: tuple[int, ...]
    sources: list[tuple[Any, ...]]
    index: Tensor | None = None


@dataclass
class StepFunction:
    """One function of one time step.

    Attributes:
        name: of the ATen function, or linear, affine, matmul.
        template: its arguments; ("i", k) is input k, ("c", k) constant k.
        inputs, constants, shape: as they say; `shape` is that of a block of the result.
        module: name of the module that it stands in.
    """

    name: str
    template: list[Any]
    inputs: list[Region]
    constants: list[Tensor]
    shape: tuple[int, ...]
    module: str = ""
    keywords: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def base(self) -> str:
        return self.name.partition(".")[0]


def gathered(region: Region, sources: Sequence[Tensor]) -> Tensor:
    """The region's value from its sources' [N, ...]."""
    first = sources[0]
    if region.index is None:
        return first.reshape(len(first), *region.shape)
    N = max(len(s) for s in sources)
    flat = torch.cat([s.reshape(len(s), -1).expand(N, -1) for s in sources], 1)
    return flat.index_select(1, region.index).view(N, *region.shape)


def run(step: StepFunction, values: Sequence[Tensor]) -> Tensor:
    """The result of a step for these values of its inputs."""
    x = values[0] if values else step.constants[0]
    match step.base:
        case "constant":
            return x[None]
        case "linear":
            return F.linear(x, step.constants[0], step.constants[1] if len(step.constants) > 1 else None)
        case "affine":
            return x * step.constants[0] + step.constants[1]
        case "matmul":
            return x @ values[1]
        case "convolution":
            bias = step.constants[1] if len(step.constants) > 1 else None
            return torch.convolution(x, step.constants[0], bias, *step.template)
        case "mean" | "sum" | "amax":
            dims = [d + 1 for d in step.template[0]]
            return getattr(torch, step.base)(x, dims).reshape(len(x), *step.shape)
        case _:
            function = getattr(getattr(torch.ops.aten, step.base), step.name.partition(".")[2] or "default")
            result = function(*_filled(step, values), **step.keywords)
            result = result[0] if isinstance(result, (tuple, list)) else result
            return (
                result if result.is_floating_point() else result.to(x.dtype if x.is_floating_point() else torch.float32)
            )


def _filled(step: StepFunction, values: Sequence[Tensor]) -> list[Any]:
    found: list[Any] = []
    for item in step.template:
        if isinstance(item, (tuple, list)) and len(item) == 2 and item[0] in ("i", "c"):
            value = values[item[1]] if item[0] == "i" else step.constants[item[1]]
            found.append(value)
        else:
            found.append(item)
    if step.base in ("where", "masked_fill"):
        place = 0 if step.base == "where" else 1
        found[place] = found[place].bool()
    if step.base in ("bitwise_and", "bitwise_or", "bitwise_not", "logical_not", "logical_and", "logical_or"):
        found = [v.bool() if isinstance(v, Tensor) else v for v in found]
    return found
