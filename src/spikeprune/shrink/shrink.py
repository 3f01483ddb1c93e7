"""The cut itself: from a masked network to a smaller one that computes the same."""

import copy
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from spikeprune.core.errors import InvalidValue, first_line
from spikeprune.core.mask import check_obeyed
from spikeprune.model.adapter import Adapter, find_adapter
from spikeprune.model.arguments import Arguments
from spikeprune.model.channels import ChannelMap
from spikeprune.model.groups import title_of_layer
from spikeprune.model.operations import multiplied, short_name
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

    Some groups of channels stay whole, and all others are cut. A group stays if its channels cannot be followed, as
    through attention; if the network fails without it, for example because the forward states its width as a number;
    or if the output on the example would differ by more than 1e-5 in float64 and eval mode.

    In float32 a sum in another order may move a membrane potential that lies within rounding of its threshold. One
    spike more or less then changes everything after it. Such ties are no error, and float64 leaves none.

    Args:
        model: the user's. It is left alone, its membrane state too.
        masks: parameter name -> bool tensor of its shape, True = alive; such as `pruner.masks`.
        example: an input, or a tuple of inputs, as in training; a small batch will do.
        optimizer: is pointed at the small model, with the state of the entries that stay.
    Returns: the small model (in the model's train or eval mode and step mode, no membrane state), and the plan.
    Raises: InvalidValue if a mask or the example does not fit, if a weight that a mask cuts is not 0, or if nothing
        can be cut. In the last case the message names the module or the layer in the way.

    Examples:
        >>> masks = sp.prune(model, "weight-norm", 0.5, data=data, pattern="channel")
        >>> small, plan = sp.shrink(model, masks, data[0][0])
        >>> small[0].out_channels, small[4].out_channels
        (4, 1)
    """
    small, plan = shrink_told(model, masks, example, optimizer)
    if not plan.cuts:
        _log.warning(
            "spikeprune: shrink cut nothing, since no channel is dead as a whole; scattered zeros pay off in "
            "sp.compile (CPU) and exports, and sp.Pruner(..., pattern='channel') makes channels that can be cut"
        )
    return small, plan


def shrink_told(
    model: nn.Module, masks: Mapping[str, Tensor], example: Any, optimizer: torch.optim.Optimizer | None = None
) -> tuple[nn.Module, ChannelPlan]:
    """`shrink` for callers that tell by themselves where the plan cuts nothing."""
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
    small, plan = _cut(masked, table, constants, masks, example, adapter)
    for name, module in small.named_modules():
        module.training = modes[name]
    if optimizer is not None:
        repoint(optimizer, model, small, plan)
    refused = table.refusals()
    if not plan.cuts and not plan.gates and refused:
        raise InvalidValue(f"{type(model).__name__} cannot be shrunk: {next(iter(refused.values()))}")
    return small, plan


def _cut(
    masked: nn.Module,
    table: ChannelMap,
    constants: Constants,
    masks: Mapping[str, Tensor],
    example: tuple[Any, ...],
    adapter: Adapter | None,
) -> tuple[nn.Module, ChannelPlan]:
    """Cuts all that can go. A group without which the outputs would differ, or the model fails, stays whole."""
    wanted: list[Tensor] | None = None
    stay, why = torch.empty(0, dtype=torch.long), dict[str, str]()
    while True:
        gone = removable(table, constants, stay)
        blocked = (*_whole(why), *_blocked(table, constants, gone, masks))
        if blocked and not bool(gone[[a for _, atoms in table.dims.values() for a in atoms.tolist()]].any()):
            raise InvalidValue(f"nothing can be cut: {blocked[0]}")
        plan = _plan(table, masked, gone, blocked)
        small = copy.deepcopy(masked)
        plan.apply(small)
        count = sum(p.numel() for p in small.parameters())
        if count != plan.parameters[1]:
            raise InvalidValue(
                f"the small network has {count:,} parameters where {plan.parameters[1]:,} were planned; nothing was "
                "changed, and a report with the model would help us"
            )
        wanted = _run(masked, example, adapter) if wanted is None else wanted
        difference, problem = _difference(wanted, small, example, adapter)
        if difference <= _TOLERANCE:
            if why:
                _log.warning("spikeprune: %s", "; ".join(_whole(why)))
            return small, plan
        found = dict(_in_the_way(masked, table, gone, wanted, example, adapter))
        if not found:
            raise InvalidValue(
                f"the cut network {problem}, though no group of channels does it alone; nothing was changed"
            )
        why |= {name: text for name, (text, _) in found.items()}
        stay = torch.cat([stay, *(atoms for _, atoms in found.values())])


def _whole(why: Mapping[str, str]) -> list[str]:
    first = next(iter(why.items()), None)
    if first is None:
        return []
    others = f" (and {len(why) - 1} more)" if len(why) > 1 else ""
    return [
        f"the channels of {first[0]!r}{others} stay, as without them the network {first[1]}; write shapes in the "
        "forward from x.shape, or exclude these layers when pruning"
    ]


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
        graph = trace(model, *example, adapter=adapter, constants=True)
    except InvalidValue:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        shapes = ", ".join(str(tuple(t.shape)) for t in _tensors(example))
        said = first_line(error, 120)
        raise InvalidValue(
            f"the model cannot run on an example of shape {shapes}: {said}; give one batch as in training"
        ) from error
    return ChannelMap(graph, model, gates="split")


def _blocked(table: ChannelMap, constants: Constants, gone: Tensor, masks: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Layers that keep filters whose mask is all False, and the reason."""
    reasons: list[str] = []
    refused = table.refusals()
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
            reason = next((refused[int(r)] for r in table.roots(atoms[stuck]) if int(r) in refused), None)
            norm = next((norms[int(r)] for r in table.roots(atoms[stuck]) if int(r) in norms), None)
            why = (
                reason
                if reason is not None
                else "other layers write to them, or they are the output"
                if norm is None
                else f"{norm!r} may still fire them"
            )
            hint = "" if norm is None or reason is not None else "; mask its weight and bias too"
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
                layers[title_of_layer(node)] = (len(atoms), int((~gone[atoms]).sum()))
    before = sum(p.numel() for p in model.parameters())
    after = before
    for name, parameter in model.named_parameters():
        kept = list(parameter.shape)
        for cut in cuts:
            if cut.tensor == name:
                kept[cut.dim] = len(cut.keep)
        after -= parameter.numel() - torch.Size(kept).numel()
    return ChannelPlan(tuple(cuts), gates, layers, (before, after), blocked)


def _in_the_way(
    masked: nn.Module,
    table: ChannelMap,
    gone: Tensor,
    wanted: list[Tensor],
    example: tuple[Any, ...],
    adapter: Adapter | None,
) -> Iterator[tuple[str, tuple[str, Tensor]]]:
    """Layer -> (what goes wrong, atoms) of each group of channels without which alone the outputs are not equal."""
    for name, atoms in _groups_cut(table, gone):
        alone = torch.zeros_like(gone)
        alone[atoms] = True
        part = copy.deepcopy(masked)
        _plan(table, masked, alone & gone).apply(part)
        difference, problem = _difference(wanted, part, example, adapter)
        if difference > _TOLERANCE:
            yield name, (problem, atoms)


def _groups_cut(table: ChannelMap, gone: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Layer -> all atoms that go together with its channels, for each layer that is cut."""
    roots = table.roots(torch.arange(table.size))
    for node in table.graph.nodes:
        for (tensor, _), (role, atoms) in table.dims.items():
            if role == "out" and tensor == node.weight and bool(gone[atoms].any()):
                yield title_of_layer(node), torch.isin(roots, table.roots(atoms)).nonzero().flatten()
    for name, (_, behind) in table.gates.items():
        yield name, torch.isin(roots, table.roots(behind)).nonzero().flatten()


def _difference(
    wanted: list[Tensor], model: nn.Module, example: tuple[Any, ...], adapter: Adapter | None
) -> tuple[float, str]:
    try:
        found = _run(model, example, adapter)
    except (RuntimeError, ValueError, IndexError) as error:
        return float("inf"), f"fails with {first_line(error, 100)!r}"
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
    with torch.no_grad(), _Widening():
        if adapter is not None:
            adapter.reset(double)
        return [t.detach() for t in _tensors(double(*_widen(double, example)))]


class _Widening(TorchFunctionMode):
    """While it is on: functions that multiply get float64 arguments.

    A user's own spike function may return float32 whatever went in.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        if multiplied(short_name(func), Arguments(args, named)):
            args, named = _double(args), {key: _double(value) for key, value in named.items()}
        return func(*args, **named)


def _double(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return tuple(_double(v) for v in value)  # pyright: ignore[reportUnknownVariableType]
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


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
