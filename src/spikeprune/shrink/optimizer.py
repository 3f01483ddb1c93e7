"""Points an optimizer at a smaller model and takes its state along."""

from typing import Any

import torch
from torch import Tensor, nn

from spikeprune.core.errors import InvalidValue
from spikeprune.shrink.plan import ChannelPlan, Cut, select


def repoint(optimizer: torch.optim.Optimizer, model: nn.Module, small: nn.Module, plan: ChannelPlan) -> None:
    """Replaces the model's parameters in the optimizer by the small model's, in place.

    Every state tensor of the parameter's shape (momentum, second moments; also a factored one, with 1 in place of a
    size) keeps the entries that the parameter keeps; counters stay. Parameters of other models are left alone.

    Raises: InvalidValue before anything changes, if the optimizer holds no parameter of the model or a state tensor
        that cannot be cut.
    """
    cuts: dict[str, list[Cut]] = {}
    for cut in plan.cuts:
        cuts.setdefault(cut.tensor, []).append(cut)
    smaller = dict(small.named_parameters())
    partner = {id(p): (name, p, smaller[name]) for name, p in model.named_parameters()}
    held = [p for group in optimizer.param_groups for p in group["params"] if id(p) in partner]
    if not held:
        raise InvalidValue("the optimizer holds no parameter of the model; build it from the model given to shrink")
    states: dict[int, dict[str, Any]] = {}
    for parameter in held:
        name, old, _ = partner[id(parameter)]
        states[id(parameter)] = {
            key: _cut(value, old, cuts.get(name, []), f"{key!r} of {name!r}")
            for key, value in optimizer.state.get(parameter, {}).items()
        }
    for group in optimizer.param_groups:
        group["params"] = [partner[id(p)][2] if id(p) in partner else p for p in group["params"]]
    for parameter in held:
        optimizer.state.pop(parameter, None)
        if states[id(parameter)]:
            optimizer.state[partner[id(parameter)][2]] = states[id(parameter)]


def _cut(value: Any, parameter: Tensor, cuts: list[Cut], what: str) -> Any:
    if not isinstance(value, Tensor) or value.numel() == 1 or not cuts:
        return value
    fits = value.dim() == parameter.dim() and all(
        v in (1, p) for v, p in zip(value.shape, parameter.shape, strict=True)
    )
    if not fits:
        raise InvalidValue(
            f"the optimizer's state {what} has shape {tuple(value.shape)}, which cannot be cut with the parameter; "
            "shrink without optimizer= and build a new one"
        )
    return select(value, cuts)
