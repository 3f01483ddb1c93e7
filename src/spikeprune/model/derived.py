"""Weights that a forward computes from parameters alone, such as standardised ones, and whether zeros stay in them."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from spikeprune.model.adapter import weights_of_neurons
from spikeprune.model.arguments import Arguments
from spikeprune.model.operations import MOVES, multiplied
from spikeprune.model.weights import Multiplication, Use, layer_modules, stored_weight


@dataclass(frozen=True)
class Computed:
    """The call that made a tensor from parameters: a function and its arguments, `Computed` for those made before."""

    function: Callable[..., Any]
    given: Arguments

    def run(self, others: Mapping[int, Tensor]) -> Tensor:
        """Computes the tensor again from `others`, id of a parameter -> value. No tensor of the model is written to."""
        args = [_run(value, others) for value in self.given.positional]
        if args and isinstance(args[0], Tensor):
            args[0] = args[0].clone()  # an in-place function writes into it
        return self.function(*args, **{k: _run(v, others) for k, v in self.given.named.items() if k != "out"})


def _run(value: Any, others: Mapping[int, Tensor]) -> Any:
    if isinstance(value, Computed):
        return value.run(others)
    if isinstance(value, Tensor):
        return others.get(id(value), value)
    if isinstance(value, (tuple, list)):
        return type(value)(_run(v, others) for v in value)  # pyright: ignore
    return value


def _leaves(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Computed):
        yield from _leaves((*value.given.positional, *value.given.named.values()))
    elif isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for each in value:  # pyright: ignore
            yield from _leaves(each)


class Derived:
    """Records which tensors were computed from one parameter alone, and the place of each of its values in them."""

    def __init__(self, model: nn.Module) -> None:
        held = {id(stored_weight(m)) for m in layer_modules(model).values()}
        held |= {id(p) for p in weights_of_neurons(model).values()}
        self.held = {n for n, p in model.named_parameters() if id(p) in held}  # weights of layers, also of a neuron's
        parameters = [(n, p) for n, p in model.named_parameters() if p.dim() >= 2]
        self.names = {id(p): n for n, p in parameters}
        self.shapes = {n: tuple(p.shape) for n, p in parameters}
        self._parameters = dict(parameters)
        self._stored = {id(t): n for n, t in (*model.named_parameters(), *model.named_buffers())}
        self._made: WeakIdKeyDictionary = WeakIdKeyDictionary()  # tensor -> Computed
        self._keeps: dict[str, bool] = {}  # parameter -> whether zeros stay where something derived is used
        self._known: WeakIdKeyDictionary = WeakIdKeyDictionary()  # tensor -> (parameter, place of each value or None)

    def origin(self, tensor: Any) -> str | None:
        """The parameter that a tensor is, or was computed from."""
        if not isinstance(tensor, Tensor):
            return None
        known = self._known.get(tensor)
        return self.names.get(id(tensor)) or (None if known is None else known[0])

    def follow(self, function: Callable[..., Any], name: str, given: Arguments, result: Any) -> None:
        """Notes that `result` was computed from the parameters among the arguments, and from nothing of the input."""
        args = given.positional
        if not isinstance(result, Tensor) or id(result) in self.names:
            return
        sources = [t for t in args if self.origin(t) is not None]
        if not sources:
            return
        first = max(sources, key=lambda t: (t.numel() == result.numel(), t.numel()))
        places = self._places(first)
        if name in MOVES and places is not None:
            moved = function(places, *args[1:], **given.named) if args and args[0] is first else None
            places = moved if isinstance(moved, Tensor) else None
        if places is not None and places.shape != result.shape:
            places = None
        self._known[result] = (self.origin(first), places)
        self._made[result] = Computed(function, Arguments(self._recorded(args), self._recorded(dict(given.named))))

    def _recorded(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._made.get(value, value)
        if isinstance(value, (tuple, list)):
            return type(value)(self._recorded(v) for v in value)  # pyright: ignore
        return {k: self._recorded(v) for k, v in value.items()} if isinstance(value, dict) else value  # pyright: ignore

    def _places(self, tensor: Tensor) -> Tensor | None:
        if id(tensor) in self.names:
            return torch.arange(tensor.numel(), device=tensor.device).view(tensor.shape)
        return self._known[tensor][1]

    def use(self, name: str, given: Arguments) -> Use | None:
        """How a function multiplies with a parameter, None if it does not."""
        for operand, outputs, axis in multiplied(name, given):
            origin = self.origin(operand)
            # A square matrix of no layer, on the left: parallel neurons mix time steps with one, [T, T] @ [T, ...].
            mixes = outputs == -2 and origin not in self.held
            if origin is not None and operand.dim() >= 2 and not (mixes and operand.shape[-1] == operand.shape[-2]):
                direct = id(operand) in self.names
                dim = outputs % operand.dim() if direct else self._dimension(operand, outputs, origin)
                if direct:
                    return Use(origin, dim, axis, True)
                return Use(origin, dim, axis, False, self._keeps_zeros(origin, operand), self._beside(origin, operand))
        return None

    def operation(self, function: Callable[..., Any], name: str, given: Arguments) -> Multiplication | None:
        """The call that `use` described, to be run again; None where its input cannot be told."""
        operand, outputs = next(
            (t, o) for t, o, _ in multiplied(name, given) if self.origin(t) is not None and t.dim() >= 2
        )
        values = given.positional[1:] if name in ("addmm", "baddbmm", "addbmm") else given.values
        flat = [t for v in values for t in (v if isinstance(v, (tuple, list)) else (v,)) if isinstance(t, Tensor)]
        x = next((t for t in flat if t is not operand), None)
        places = None if id(operand) in self.names else self._known[operand][1]
        return None if x is None else Multiplication(x, operand, outputs, function, given, places)

    def _beside(self, origin: str, operand: Tensor) -> tuple[str, ...]:
        """Parameters and buffers of a parameter's shape that were combined with it on the way to `operand`."""
        found = list(_leaves(self._made[operand]))
        names = [self._stored.get(id(t), origin) for t in found if tuple(t.shape) == self.shapes[origin]]
        return tuple(dict.fromkeys(name for name in names if name != origin))

    def _keeps_zeros(self, origin: str, operand: Tensor) -> bool:
        """Whether a 0 of a parameter adds nothing to what was computed from it; told by computing it anew.

        With f the computation and w a weight with some zeros, f(w) at each of them must be 0, or not depend on w at
        all (a constant, a fixed mask), or be what other parameters add there: f(0) that vanishes with them, in a sum
        with the part of w. So a low-rank update of w keeps zeros; sigmoid(w) and sigmoid(w) * g do not, as a 0 becomes
        a half. No other entry of w may be seen. Where entries cannot be told apart after f, f must be a sum of them.
        True where it cannot be computed again.
        """
        if origin not in self._keeps:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                try:
                    self._keeps[origin] = _adds_nothing(self._tried(origin, operand))
                except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):
                    self._keeps[origin] = True
        return self._keeps[origin]

    def _tried(self, origin: str, operand: Tensor) -> "_Tried":
        parameter, made = self._parameters[origin], self._made[operand]
        values = torch.rand(parameter.shape, generator=torch.Generator().manual_seed(0)).to(parameter) + 0.5
        whole = values.clone()
        values.view(-1)[::3] = 0
        values[0] = 0
        places = self._known[operand][1]
        zeros = None if places is None else values.view(-1)[places] == 0
        others = {id(t): t for t in _leaves(made) if t is not parameter and t.is_floating_point()}
        moved = {key: t * 1.5 + 0.25 for key, t in others.items()}
        without = {key: torch.zeros_like(t) for key, t in others.items()}

        def run(weight: Tensor, other: Mapping[int, Tensor]) -> Tensor:
            return made.run({**other, id(parameter): weight})

        nothing, once, twice = (run(values * factor, {}) for factor in (0, 1, 2))
        if zeros is None:
            return _Tried(nothing, once, twice, None)
        effect = run(whole, moved) - run(values * 0, moved)
        return _Tried(nothing, once, twice, zeros, run(whole, {}), effect, run(values * 0, without), bool(others))

    def _dimension(self, operand: Tensor, outputs: int, origin: str) -> int:
        """The dimension of the parameter along which `operand` runs in its dimension `outputs`."""
        places, shape = self._known[operand][1], self.shapes[origin]
        size = operand.shape[outputs]
        if places is not None and size > 1:
            one, two = (torch.unravel_index(places.movedim(outputs, 0)[i].flatten()[0], shape) for i in (0, 1))
            return next(dim for dim, (a, b) in enumerate(zip(one, two, strict=True)) if a != b)
        fitting = [dim for dim, length in enumerate(shape) if length == size]
        return fitting[0] if fitting else 0


@dataclass(frozen=True)
class _Tried:
    """Results for a weight with zeros (`once`), for twice that weight and for 0 (`nothing`), and the places of zeros.

    whole: what is computed from a weight without zeros. effect: what that adds to `nothing`, where the other
    parameters have changed. bare: what is computed from 0 where the others are 0. `zeros` is None where entries
    cannot be told apart.
    """

    nothing: Tensor
    once: Tensor
    twice: Tensor
    zeros: Tensor | None
    whole: Tensor | None = None
    effect: Tensor | None = None
    bare: Tensor | None = None
    others: bool = False


def _adds_nothing(tried: _Tried) -> bool:
    nothing, once, zeros = tried.nothing, tried.once, tried.zeros
    if not bool(once.isfinite().all()):  # a row of zeros, divided by its norm
        return False
    if zeros is None or tried.whole is None or tried.effect is None or tried.bare is None:
        return torch.allclose(tried.twice - once, once - nothing, rtol=1e-3, atol=1e-5)
    kept = (once == 0) | ((once == nothing) & (tried.whole == nothing))
    added = tried.others and (
        torch.allclose(tried.effect, tried.whole - nothing, rtol=1e-3, atol=1e-5)
        or torch.allclose((tried.twice - once)[~zeros], (once - nothing)[~zeros], rtol=1e-3, atol=1e-5)
    )
    if added:
        kept |= (once == nothing) & (tried.bare == 0)
    return bool(kept[zeros].all())
