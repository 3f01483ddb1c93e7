"""Recognises parts of the graph of one time step: cycles, scalings of channels, poolings."""

import torch
from torch import Tensor

from spikeprune.runtime.compile.network import Option
from spikeprune.runtime.steps.roll import Key
from spikeprune.runtime.steps.steps import StepFunction


def components(edges: dict[Key, list[Key]]) -> list[list[Key]]:
    """Strongly connected parts of a graph, node -> the nodes that it reads.

    Parts that others read come first (Tarjan 1972).
    """
    index: dict[Key, int] = {}
    low: dict[Key, int] = {}
    stack: list[Key] = []
    on: set[Key] = set()
    found: list[list[Key]] = []
    for root in edges:
        work = [(root, iter(edges[root]))] if root not in index else []
        if work:
            index[root] = low[root] = len(index)
            stack.append(root)
            on.add(root)
        while work:
            node, rest = work[-1]
            for other in rest:
                if other not in index:
                    index[other] = low[other] = len(index)
                    stack.append(other)
                    on.add(other)
                    work.append((other, iter(edges[other])))
                    break
                if other in on:
                    low[node] = min(low[node], index[other])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == index[node]:
                    part: list[Key] = []
                    while not part or part[-1] != node:
                        part.append(stack.pop())
                        on.discard(part[-1])
                    found.append(part)
    return found


def two(values: list[int]) -> tuple[int, ...]:
    return tuple(values) if len(values) == 2 else (values[0], values[0])


def by_channel(value: Tensor, shape: tuple[int, ...]) -> Tensor | None:
    """One number for each channel, None if they differ within one."""
    flat = value.expand(shape).reshape(shape[0], -1)
    return flat[:, 0].clone() if bool((flat == flat[:, :1]).all()) else None


def scaling(step: StepFunction) -> tuple[Tensor, Tensor] | None:
    """(scale, shift) for each channel if the step does nothing else."""
    channels = step.shape[0]

    def vector(constant: Tensor | float) -> Tensor | None:
        tensor = torch.as_tensor(constant, dtype=torch.float32)
        if tensor.numel() == 1:
            return tensor.reshape(1).expand(channels).clone()
        full = tensor.dim() == len(step.shape) and tensor.shape[0] == tensor.numel() == channels
        return tensor.reshape(-1).clone() if full else None

    if step.base == "affine":
        found = [vector(c) for c in step.constants]
        return None if found[0] is None or found[1] is None else (found[0], found[1])
    if (
        step.base not in ("mul", "div", "add", "sub")
        or len(step.inputs) != 1
        or step.keywords
        or len(step.template) != 2
    ):
        return None
    left, right = step.template
    if not isinstance(left, tuple) or left[0] != "i":
        if step.base in ("mul", "add"):
            left, right = right, left
        else:
            return None
    if not isinstance(left, tuple) or left[0] != "i":
        return None
    other = vector(step.constants[right[1]] if isinstance(right, tuple) else right)
    if other is None:
        return None
    one, zero = torch.ones(channels), torch.zeros(channels)
    match step.base:
        case "mul":
            return other, zero
        case "div":
            return 1 / other, zero
        case "add":
            return one, other
        case _:
            return one, -other


def pooling(step: StepFunction) -> dict[str, Option] | None:
    """The settings of a plain 2-d pooling."""
    if len(step.shape) != 3 or step.base not in ("max_pool2d_with_indices", "avg_pool2d"):
        return None
    rest = [*step.template[1:], *[None] * 6]
    kernel = two(rest[0])
    stride = two(rest[1]) if rest[1] else kernel
    padding = two(rest[2]) if rest[2] else (0, 0)
    if step.base == "max_pool2d_with_indices":
        if rest[3] and two(rest[3]) != (1, 1):
            return None
        mode: dict[str, Option] = {"mode": "max", "divisor": None, "count_pad": True, "ceil": bool(rest[4])}
    else:
        count = True if rest[4] is None else bool(rest[4])
        mode = {"mode": "avg", "divisor": rest[5], "count_pad": count, "ceil": bool(rest[3])}
    return mode | {"kernel": kernel, "stride": stride, "padding": padding}
