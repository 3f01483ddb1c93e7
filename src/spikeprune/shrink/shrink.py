"""The cut itself: from a masked network to a smaller one that computes the same."""

import copy
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from spikeprune.core.errors import InvalidValue
from spikeprune.core.mask import check_obeyed
from spikeprune.model.adapter import Adapter, find_adapter
from spikeprune.model.channels import ChannelMap
from spikeprune.model.trace import trace
from spikeprune.model.wrappers import eager
from spikeprune.shrink.dead import Constants, removable
from spikeprune.shrink.optimizer import repoint
from spikeprune.shrink.plan import ChannelPlan, Cut, copy_without_state

_TOLERANCE = 1e-5
_log = logging.getLogger("spikeprune")


def shrink(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    example: Any,
    optimizer: torch.optim.Optimizer | None = None,
) -> tuple[nn.Module, ChannelPlan]:
    """A physically smaller network with equal outputs: channels that nothing reads, or that are 0, are taken out.

    A channel goes if its filter, its normalisation's scale and shift and its bias are masked (what
    `pattern="channel"` and `"gate"` do), if it provably never fires, or if every weight that reads it is masked. A
    masked filter whose normalisation keeps a shift may still fire, and stays: `plan.blocked` says so. Every layer
    keeps at least one channel. Behind a `ChannelGate` a channel can be cut that the stream before it needs.

    Args:
        model: the user's. It is left alone, its membrane state too.
        masks: parameter name -> bool tensor of its shape, True = alive; such as `pruner.masks`.
        example: an input, or a tuple of inputs, as in training; a small batch will do.
        optimizer: is pointed at the small model, with the state of the entries that stay.
    Returns: the small model (in the model's train or eval mode and step mode, no membrane state), and the plan.
    Raises: InvalidValue if a mask does not fit, or a weight that it cuts is not 0; if the example does not fit; naming
        the module, if the network holds one whose channels cannot be followed; naming the group, if the small network's
        output on the example differs by more than 1e-5 in float64 and eval mode. In float32 a sum in another order may
        move a membrane potential that lies within rounding of its threshold, and one spike more or less changes
        everything after it: such ties are no error, and float64 leaves none.

    Examples:
        >>> masks = sp.prune(model, "weight-norm", 0.5, data=data, pattern="channel")
        >>> small, plan = sp.shrink(model, masks, data[0][0])
        >>> small[0].out_channels, small[4].out_channels
        (4, 1)
    """
    model = eager(model)
    _check_masks(model, masks)
    check_obeyed(masks, dict(model.named_parameters()))
    example = example if isinstance(example, tuple) else (example,)
    adapter = find_adapter(model)
    masked = copy_without_state(model, adapter)
    _apply_masks(masked, masks)
    modes = {name: module.training for name, module in masked.named_modules()}
    masked.eval()
    table = _channels(masked, example, adapter)
    constants = Constants(table, masked, masks, adapter)
    gone = removable(table, constants)
    blocked = _blocked(table, constants, gone, masks)
    if blocked and not bool(gone[[a for _, atoms in table.dims.values() for a in atoms.tolist()]].any()):
        raise InvalidValue(f"nothing can be cut: {blocked[0]}")
    plan = _plan(table, masked, gone, blocked)
    small = copy.deepcopy(masked)
    plan.apply(small)
    _verify(masked, small, plan, table, gone, example, adapter)
    for name, module in small.named_modules():
        module.training = modes[name]
    if optimizer is not None:
        repoint(optimizer, model, small, plan)
    if not plan.cuts:
        _log.warning(
            "spikeprune: shrink cut nothing, since no channel is dead as a whole; scattered zeros pay off in "
            "sp.compile (CPU) and exports, and sp.Pruner(..., pattern='channel') makes channels that can be cut"
        )
    return small, plan


def _check_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    parameters = dict(model.named_parameters())
    for name, mask in masks.items():
        if name not in parameters:
            raise InvalidValue(
                f"the mask {name!r} names no parameter of {type(model).__name__}; give this model's masks"
            )
        if mask.shape != parameters[name].shape or mask.dtype is not torch.bool:
            raise InvalidValue(
                f"the mask of {name!r} must be bool of shape {tuple(parameters[name].shape)}, "
                f"got {mask.dtype} of shape {tuple(mask.shape)}"
            )


def _apply_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, mask in masks.items():
            parameters[name].masked_fill_(~mask.to(parameters[name].device), 0)


def _channels(model: nn.Module, example: tuple[Any, ...], adapter: Adapter | None) -> ChannelMap:
    try:
        graph = trace(model, *example, adapter=adapter)
    except InvalidValue:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        shapes = ", ".join(str(tuple(t.shape)) for t in _tensors(example))
        raise InvalidValue(
            f"the model cannot run on an example of shape {shapes}: {str(error).splitlines()[0][:120]}; "
            "give one batch as in training"
        ) from error
    table = ChannelMap(graph, model, gates="split")
    refused = table.refusals()
    if refused:
        raise InvalidValue(f"{type(model).__name__} cannot be shrunk: {next(iter(refused.values()))}")
    return table


def _blocked(table: ChannelMap, constants: Constants, gone: Tensor, masks: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Layers that keep filters whose mask is all False, and the reason."""
    reasons: list[str] = []
    norms = {int(root): name for name, atoms in table.norms.items() for root in table.roots(atoms)}
    for (tensor, dim), (role, atoms) in table.dims.items():
        if role != "out" or tensor not in masks or masks[tensor].dim() < 2:
            continue
        dead = ~constants.alive(tensor).movedim(dim, 0).flatten(1).any(1)
        stuck = dead & ~gone[atoms]
        # One channel of a layer that would vanish stays by rule; nothing is in its way.
        if bool(gone[atoms].any()) and int((~gone[atoms]).sum()) == 1:
            continue
        if bool(stuck.any()):
            norm = next((norms[int(r)] for r in table.roots(atoms[stuck]) if int(r) in norms), None)
            why = (
                "other layers write to them, or they are the output"
                if norm is None
                else f"{norm!r} may still fire them"
            )
            hint = "" if norm is None else "; mask its weight and bias too"
            reasons.append(f"{int(stuck.sum())} masked filters of {tensor!r} stay, as {why}{hint}")
    return tuple(reasons)


def _plan(table: ChannelMap, model: nn.Module, gone: Tensor, blocked: tuple[str, ...] = ()) -> ChannelPlan:
    sizes = {name: tensor.shape for name, tensor in model.state_dict(keep_vars=True).items()}
    cuts = [
        Cut(tensor, dim, sizes[tensor][dim], tuple(torch.nonzero(~gone[atoms]).flatten().tolist()))
        for (tensor, dim), (_, atoms) in table.dims.items()
        if bool(gone[atoms].any())
    ]
    gates: dict[str, tuple[int, ...]] = {}
    for name, (before, behind) in table.gates.items():
        gate: Any = next(node.module for node in table.graph.nodes if node.name == name)
        passes = torch.zeros(len(before), dtype=torch.bool)
        passes[gate.index.cpu()[~gone[behind]]] = True
        gates[name] = tuple(torch.nonzero(passes[~gone[before]]).flatten().tolist())
    layers: dict[str, tuple[int, int]] = {}
    for node in table.graph.nodes:
        for (tensor, dim), (role, atoms) in table.dims.items():
            if node.weight == tensor and role == "out" and dim in (0, 1):
                layers[node.name] = (len(atoms), int((~gone[atoms]).sum()))
    before = sum(p.numel() for p in model.parameters())
    after = before
    for name, parameter in model.named_parameters():
        kept = list(parameter.shape)
        for cut in cuts:
            if cut.tensor == name:
                kept[cut.dim] = len(cut.keep)
        after -= parameter.numel() - torch.Size(kept).numel()
    return ChannelPlan(tuple(cuts), gates, layers, (before, after), blocked)


def _verify(
    masked: nn.Module,
    small: nn.Module,
    plan: ChannelPlan,
    table: ChannelMap,
    gone: Tensor,
    example: tuple[Any, ...],
    adapter: Adapter | None,
) -> None:
    count = sum(p.numel() for p in small.parameters())
    if count != plan.parameters[1]:
        raise InvalidValue(f"the small network has {count:,} parameters where {plan.parameters[1]:,} were planned")
    wanted = _run(masked, example, adapter)
    difference, problem = _difference(wanted, small, example, adapter)
    if difference <= _TOLERANCE:
        return
    for name, atoms in _groups_cut(table, gone):
        alone = torch.zeros_like(gone)
        alone[atoms] = True
        part = copy.deepcopy(masked)
        _plan(table, masked, alone & gone).apply(part)
        if _difference(wanted, part, example, adapter)[0] > _TOLERANCE:
            raise InvalidValue(
                f"the channels of {name!r} cannot be cut: the network then {problem}; "
                "exclude this layer when pruning, or prune its weights instead"
            )
    raise InvalidValue(f"the cut network {problem}, though no group of channels does it alone; nothing was changed")


def _groups_cut(table: ChannelMap, gone: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Layer -> all atoms that go together with its channels, for each layer that is cut."""
    roots = table.roots(torch.arange(table.size))
    for node in table.graph.nodes:
        for (tensor, _), (role, atoms) in table.dims.items():
            if role == "out" and tensor == node.weight and bool(gone[atoms].any()):
                yield node.name, torch.isin(roots, table.roots(atoms)).nonzero().flatten()
    for name, (_, behind) in table.gates.items():
        yield name, torch.isin(roots, table.roots(behind)).nonzero().flatten()


def _difference(
    wanted: list[Tensor], model: nn.Module, example: tuple[Any, ...], adapter: Adapter | None
) -> tuple[float, str]:
    try:
        found = _run(model, example, adapter)
    except (RuntimeError, ValueError, IndexError) as error:
        return float("inf"), f"fails with {str(error).splitlines()[0][:100]!r}"
    if [t.shape for t in found] != [t.shape for t in wanted]:
        return float("inf"), "returns other shapes"
    largest = max((float((a - b).abs().max()) for a, b in zip(wanted, found, strict=True) if a.numel()), default=0.0)
    return largest, f"differs by {largest:.2g} on the example"


def _run(model: nn.Module, example: tuple[Any, ...], adapter: Adapter | None) -> list[Tensor]:
    """The model's outputs in eval mode and float64."""
    double = copy.deepcopy(model).double().eval()
    for module in double.modules():
        if not any(True for _ in module.children()):
            module.register_forward_pre_hook(_widen)  # snnTorch's spikes are float32 whatever came in
    with torch.no_grad():
        if adapter is not None:
            adapter.reset(double)
        return [t.detach() for t in _tensors(double(*_widen(double, example)))]


def _widen(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in args)


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (tuple, list)):
        for value in values:
            yield from _tensors(value)
    elif isinstance(values, dict):
        for value in values.values():
            yield from _tensors(value)
