"""Finds the axes of samples and time steps in a batch: as the caller says, or from targets, neurons and outputs."""

from collections.abc import Collection
from typing import Any

from torch import Tensor, nn

from spikeprune.core.errors import InvalidValue
from spikeprune.model.adapter import Adapter
from spikeprune.model.operations import layer_kind, leaf_kind
from spikeprune.model.trace import Graph

TIMES = ("first", "batch-first", "last", "outside")


def check_time(time: str | None, allowed: Collection[str] = TIMES) -> None:
    """Raises: InvalidValue if `time` is not one of the allowed words, or None."""
    if time is not None and time not in allowed:
        words = ", ".join(map(repr, list(allowed)[:-1]))
        raise InvalidValue(f"time must be {words} or {list(allowed)[-1]!r}, got {time!r}")


def samples_axis(time: str) -> int:
    """The axis of a batch that counts samples: 1 in [T, N, ...], 0 in [N, T, ...] and [N, ..., T]."""
    return int(time in ("first", "outside"))


def samples_of(x: Any, target: Any, seen: set[int], output: Any, plain: bool) -> int | None:
    """N of a batch [N, ...], [T, N, ...] or [N, T, ...], None if it cannot be told.

    Args:
        target: what belongs to the batch; one value a sample tells it.
        seen: the sizes of the axis of samples that reached the neurons.
        output: what the model returned; [N, classes] tells it where no neuron does.
        plain: whether all modules are known, so that none hides a loop over time.
    """
    sizes = list(x.shape[:2]) if isinstance(x, Tensor) else []
    if isinstance(target, Tensor) and target.dim() == 1 and len(target) in sizes:
        return len(target)
    candidates = {size for size in sizes if size in seen}
    if not seen and isinstance(output, Tensor) and output.dim() == 2 and output.shape[0] in sizes:
        candidates = {output.shape[0]}  # no neuron tells, but [N, classes] does
    elif not seen and (plain or list(getattr(output, "shape", ()))[:2] != sizes):
        candidates = set(sizes[:1])
    if len(candidates) == 1:
        return candidates.pop()
    return target.shape[0] if isinstance(target, Tensor) and target.dim() else None


def not_told(x: Any, seen: set[int]) -> InvalidValue:
    """The error for a batch whose number of samples cannot be told."""
    sizes = list(x.shape[:2]) if isinstance(x, Tensor) else []
    return InvalidValue(
        f"the batch size cannot be told: the input has {sizes}, the neurons saw {sorted(seen)}; "
        "give (input, target) pairs, or say where time is: time='first' or 'batch-first'"
    )


def seen_by_neurons(graph: Graph, adapter: Adapter) -> set[int]:
    """The sizes of the axis of samples that reached the neurons of a traced forward."""
    seen: set[int] = set()
    for node in graph.nodes:
        if node.kind != "neuron":
            continue
        if node.module is not None:
            axis = int(adapter.multi_step(node.module))
            seen.update(node.shape[axis : axis + 1])
        elif sum(other.name == node.name for other in graph.nodes) > 1:  # called once for each time step
            seen.update(node.shape[:1])
    return seen


def over_time(graph: Graph, adapter: Adapter) -> bool:
    """Whether a traced forward ran over several time steps: a neuron saw a sequence, or was called more than once."""
    neurons = [node for node in graph.nodes if node.kind == "neuron"]
    names = [node.name for node in neurons]
    return len(set(names)) < len(names) or any(n.module is not None and adapter.multi_step(n.module) for n in neurons)


def unknown_parts(model: nn.Module, adapter: Adapter | None) -> bool:
    """Whether some module without children is of an unknown class, which may hold a loop over time."""
    return any(
        not list(module.children())
        and not type(module).__module__.startswith("torch.")
        and leaf_kind(module, adapter) is None
        and layer_kind(module) is None
        for module in model.modules()
    )
