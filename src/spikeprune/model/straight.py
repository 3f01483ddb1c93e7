"""Straight-through spikes: (s - g).detach() + g, a comparison whose gradient is that of a smooth curve beside it."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from spikeprune.core.errors import InvalidValue
from spikeprune.model.adapter import surrogate_derivative
from spikeprune.model.arguments import Arguments
from spikeprune.model.discover import SpikeCall, fires

_COMPARISONS = {"gt", "ge", "__gt__", "__ge__", "heaviside", "sign", "greater", "greater_equal"}
# A Parameter on the right hand of `v >= threshold` makes Python call the parameter's own `<=`.
_REFLECTED = {"lt", "le", "__lt__", "__le__", "less", "less_equal"}
_SUMS = {"add", "sub", "__add__", "__sub__", "__radd__", "__rsub__", "rsub", "where"}
_RECENT = 24  # the curve stands a few functions away from the comparison


@dataclass(frozen=True)
class Step:
    """One call of a tensor function."""

    name: str
    run: Callable[..., Any]
    given: Arguments
    result: Tensor
    in_place: bool


class StraightThrough:
    """Watches the latest tensor functions for a sum that is 0 or 1 by a comparison, and smooth by its gradient."""

    def __init__(self) -> None:
        self._recent: deque[Step] = deque(maxlen=_RECENT)
        self._compared: WeakIdKeyDictionary = WeakIdKeyDictionary()  # tensor -> what the comparison in it looked at

    def see(self, step: "Step") -> SpikeCall | None:
        """Takes in one function call; returns the spike call that it completes, if it does."""
        name, args, result = step.name, step.given.positional, step.result
        compared = next((self._compared[t] for t in args if isinstance(t, Tensor) and t in self._compared), None)
        if name in _COMPARISONS | _REFLECTED:
            looked_at = args[1 if name in _REFLECTED and isinstance(args[1], Tensor) else 0]
            compared = looked_at if looked_at.is_floating_point() else compared
        if compared is not None:
            self._compared[result] = compared
        self._recent.append(step)
        if compared is None or name not in _SUMS or not result.is_floating_point() or not _near_binary(result):
            return None
        if not any(step.name == "detach" for step in self._recent):
            return None
        return next((call for u in self._starts(compared) if (call := self._from(u, result)) is not None), None)

    def _starts(self, compared: Tensor) -> list[Tensor]:
        """The compared tensor, and what it was computed from."""
        maker = next((step for step in self._recent if step.result is compared), None)
        return [
            compared,
            *(t for t in (maker.given.positional if maker else ()) if isinstance(t, Tensor) and t.is_floating_point()),
        ]

    def _from(self, u: Tensor, result: Tensor) -> SpikeCall | None:
        steps = list(self._recent)

        def apply(value: Tensor) -> Tensor:
            values: dict[int, Tensor] = {id(u): value}
            for step in steps:
                if _holds(step.given.positional, values):
                    values[id(step.result)] = step.run(*_replaced(step.given.positional, values), **step.given.named)
                if step.result is result:
                    break
            return _binary(values[id(result)]) if id(result) in values else torch.full_like(value, float("nan"))

        depends = {id(u): u}
        for step in steps:
            if _holds(step.given.positional, depends):
                if step.in_place:
                    return None
                depends[id(step.result)] = step.result
        call = SpikeCall(apply, u)
        if u.shape != result.shape or id(result) not in depends or not fires(call, apply(u.detach())):
            return None
        near = torch.linspace(-2, 2, max(u.numel(), 9), device=u.device, dtype=u.dtype)[: u.numel()].view(u.shape)
        try:
            return call if bool((surrogate_derivative(apply, near) != 0).any()) else None
        except InvalidValue:  # the sum does not depend on u by any gradient, such as one with detached spikes
            return None


def _near_binary(value: Tensor) -> bool:
    with torch.no_grad():
        return bool((value - value.round()).abs().max() < 1e-4) if value.numel() else False


def _binary(value: Tensor) -> Tensor:
    """(s - g) + g is 0 or 1 up to rounding only; the gradient stays that of g."""
    return value + (value.round() - value).detach()


def _holds(value: Any, known: dict[int, Tensor]) -> bool:
    if isinstance(value, Tensor):
        return id(value) in known
    return isinstance(value, (tuple, list)) and any(_holds(v, known) for v in value)  # pyright: ignore


def _replaced(value: Any, known: dict[int, Tensor]) -> Any:
    if isinstance(value, Tensor):
        return known.get(id(value), value)
    if isinstance(value, (tuple, list)):
        return type(value)(_replaced(v, known) for v in value)  # pyright: ignore
    return value
