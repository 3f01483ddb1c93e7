"""Watches a forward between the leaf modules: functions, writes into tensors, spike functions, weights in use."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from spikeprune.model.arguments import NONE, Arguments, tensors
from spikeprune.model.derived import Derived
from spikeprune.model.discover import SpikeCall, SpikeNeuron, fires
from spikeprune.model.operations import (
    ELEMENTWISE,
    FUNCTIONS,
    MULTIPLIES_INSIDE,
    WRITES,
    is_mapped,
    multiplied,
    short_name,
)
from spikeprune.model.straight import Step, StraightThrough
from spikeprune.model.weights import Multiplication, Use

if TYPE_CHECKING:
    from spikeprune.model.trace import Graph

_SPIKES_OF = "spikes of "  # marks a neuron among the weights that feed a tensor


class Listener(Protocol):
    """Is told, while a forward runs, what cannot be seen by a hook on a module."""

    def began(self) -> None:
        """A forward begins."""
        ...

    def spike(self, neuron: SpikeNeuron) -> None:
        """A spike function was called; `neuron.call` is the call."""
        ...

    def used(self, use: Use, operation: Multiplication) -> None:
        """A function multiplied with a weight outside of the module that holds it."""
        ...


class Watch(TorchFunctionMode):
    """Sees every tensor function outside of leaf modules; leaf modules report themselves through hooks."""

    def __init__(self, graph: "Graph", model: nn.Module, constants: bool, listener: Listener | None) -> None:
        super().__init__()
        self.graph = graph
        self.constants = constants
        self.listener = listener
        self.weights = {id(p): name for name, p in model.named_parameters()}
        self.stored = {id(t) for t in (*model.parameters(), *model.buffers())}  # may change from forward to forward
        self.derived = Derived(model)
        self.depth = 0  # how many leaf modules we are inside of
        self.first = True  # whether this is the first forward that is traced, whose calls are counted
        self.inside: str | None = None  # the neuron module that we are inside of
        self.used_inside: dict[str, tuple[Use, int]] = {}  # weights used in the present neuron, and how many outputs
        self.source: WeakIdKeyDictionary = WeakIdKeyDictionary()  # tensor -> index of the node it came from
        # Tensor -> the weights that feed it since the last spike, and neurons whose spikes are in it.
        self.fed: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self.straight = StraightThrough()
        self._spiking: dict[type, bool] = {}
        self._bases: dict[str, frozenset[str]] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.depth and self.inside is None:
            return func(*args, **kwargs)
        short, given = short_name(func), Arguments(args, kwargs)
        use = self.derived.use(short, given)
        if self.depth:
            if use is not None and self.inside is not None and use.weight in self.derived.held:
                if self.depth == 1:  # deeper, the layer's own hooks see it
                    self._tell_use(use, func, short, given)
                result = func(*args, **kwargs)
                self.used_inside.setdefault(use.weight, (use, result.shape[use.axis]))
                return result
            return func(*args, **kwargs)
        inputs = self.sources(given)
        looks = bool(inputs) and self.first and (short in ELEMENTWISE or short in WRITES)
        numbers = self._numbers(args) if looks else {}  # before the call, which may write
        fed = self.feeding(given) if use is None else frozenset({use.weight})
        # Looked up before the call: an in-place function's result is one of its arguments.
        traced = tuple(i for i, value in enumerate(args) if isinstance(value, Tensor) and value in self.source)
        constants = [t for t in tensors(given) if t not in self.source] if self.constants and inputs else []
        result = func(*args, **kwargs)
        written = _written(short, args)
        results = list(tensors(result)) if written is None else [written]
        if not results:
            return result
        self._mark(results, fed)
        if not inputs:
            self._unfollowed(use, short, given)
            self.derived.follow(func, short, given, result)
            return result
        if use is None:
            self._unread(short, given)
        if self.constants:
            self.graph.constants[len(self.graph.nodes)] = constants
        kind = "write" if short in WRITES else FUNCTIONS.get(short, "other")
        if use is not None and kind == "other":
            kind = "linear"
        plain = Arguments(tuple(without_tensors(args)), {k: without_tensors(v) for k, v in kwargs.items()})
        if numbers:
            known = tuple(numbers.get(id(v), kept) for v, kept in zip(args, plain.positional, strict=True))
            plain = Arguments(known, plain.named)
        self.add(kind, short, None, inputs, results, None if use is None else use.weight, plain, use, traced)
        if written is not None and written._base is not None:
            self.source[written._base] = len(self.graph.nodes) - 1
            self._mark([written._base], fed | self.feeding(written._base))
        if use is not None:
            self._tell_use(use, func, short, given)
        if isinstance(result, Tensor):
            self._straight_through(Step(short, func, given, result, written is not None))
        return result

    def _unread(self, name: str, given: Arguments) -> None:
        for tensor in tensors(given):
            origin = self.derived.origin(tensor)
            if origin is not None and (origin in self.derived.held or name in MULTIPLIES_INSIDE):
                self.graph.unread.setdefault(origin, name)

    def _unfollowed(self, use: Use | None, name: str, given: Arguments) -> None:
        """Notes a product with values that do not come from the input by functions on tensors."""
        if use is None and not multiplied(name, given):
            return
        values = list(tensors(given))
        if any(map(is_mapped, values)):
            self.graph.mapped = self.graph.mapped or name
        elif use is not None:
            unknown = [t for t in values if self.derived.origin(t) is None and id(t) not in self.stored]
            if any(self._unwatched(t.count_nonzero).item() for t in unknown):  # a first state of 0 adds nothing
                self.graph.unread.setdefault(use.weight, f"{name} of values that no function of torch made")

    def _numbers(self, args: tuple[Any, ...]) -> dict[int, float]:
        """id of a tensor -> its number, for arguments that hold one number everywhere, such as a first state of 0.

        Tensors that come from the input are left out.
        """
        found: dict[int, float] = {}
        with torch.no_grad():
            for t in args:
                if isinstance(t, Tensor) and t.is_floating_point() and t.numel() and t not in self.source:
                    low, high = t.aminmax()
                    if (t.numel() == 1 or id(t) not in self.stored) and bool(low == high):
                        found[id(t)] = float(low)
        return found

    # -- where tensors come from -------------------------------------------------------------------------------------

    def sources(self, values: Any) -> tuple[int, ...]:
        """Indices of the nodes that these tensors came from."""
        return tuple(self.source[t] for t in tensors(values) if t in self.source)

    def feeding(self, values: Any) -> frozenset[str]:
        """The weights (and neurons) that feed these tensors."""
        found: set[str] = set()
        for tensor in tensors(values):
            found.update(self.fed.get(tensor) or ())
        return frozenset(found)

    def _mark(self, results: list[Tensor], fed: frozenset[str]) -> None:
        if fed:
            for tensor in results:
                self.fed[tensor] = fed

    def keep_inner(self, neuron: str, result: Any) -> None:
        """After a neuron's call: the weights used inside feed it, if they have an output for each of its channels."""
        spikes = next(tensors(result), None)
        for weight, (use, channels) in self.used_inside.items():
            if spikes is not None and spikes.dim() >= -use.axis and spikes.shape[use.axis] == channels:
                self.graph.inner.setdefault(weight, (neuron, use))
        self.used_inside.clear()

    def leaf(self, kind: str, name: str, weight: str | None, values: Any, result: Any) -> None:
        """Notes what feeds the result of a leaf module."""
        if kind == "neuron":
            fed = frozenset({_SPIKES_OF + name})
        elif kind in ("conv", "linear"):
            fed = frozenset({weight or f"{name}.weight"})
        else:
            fed = self.feeding(values)
        self._mark(list(tensors(result)), fed)

    def add(
        self,
        kind: str,
        name: str,
        module: nn.Module | None,
        inputs: tuple[int, ...],
        result: Any,
        weight: str | None = None,
        arguments: Arguments = NONE,
        use: Use | None = None,
        traced: tuple[int, ...] = (),
    ) -> None:
        """Adds a node whose results are the tensors in `result`."""
        found = list(tensors(result))
        index = self.graph.append(kind, name, module, inputs, found, weight, arguments, use, traced)
        for tensor in found:
            self.source[tensor] = index

    def _tell_use(self, use: Use, func: Callable[..., Any], short: str, given: Arguments) -> None:
        if self.listener is not None:
            operation = self.derived.operation(func, short, given)
            if operation is not None:
                self._unwatched(lambda: self.listener.used(use, operation))  # type: ignore[union-attr]

    # -- spikes ------------------------------------------------------------------------------------------------------

    def function(self, cls: type, args: tuple[Any, ...], run: Callable[[], Any]) -> Any:
        """A call of an autograd function; see `discover.functions_watched`."""
        if self.depth:
            return run()
        before = len(self.graph.nodes)
        result = run()
        inputs = self.sources(args)
        if not inputs:  # a quantiser of weights, perhaps
            apply: Callable[..., Any] = cls.apply  # type: ignore[attr-defined]  # an autograd function's
            self.derived.follow(apply, cls.__name__, Arguments(args), result)
            return result
        place = next(i for i, value in enumerate(args) if isinstance(value, Tensor))
        call = SpikeCall(_applied(cls, args[:place]), args[place], args[place + 1 :])
        if isinstance(result, Tensor) and self._fires(cls, call, result):
            self.graph.cut(before)  # what the function did inside is its own business
            self.add("other", cls.__name__, None, inputs, result)
            self._spike(cls.__name__, call, result, self.feeding(args))
        elif not self.sources(result):
            self.add("other", cls.__name__, None, inputs, result)
            self._mark(list(tensors(result)), self.feeding(args))
        return result

    def _fires(self, cls: type, call: SpikeCall, result: Tensor) -> bool:
        if cls not in self._spiking:
            self._spiking[cls] = self._unwatched(lambda: fires(call, result))
        return self._spiking[cls]

    def _straight_through(self, step: Step) -> None:
        call = self._unwatched(lambda: self.straight.see(step))
        if call is not None:
            self._spike("straight-through", call, step.result, self.feeding(call.u), step.name)

    def _spike(
        self, function: str, call: SpikeCall, result: Tensor, fed: frozenset[str], ends: str | None = None
    ) -> None:
        """Makes the node of `result`, the last one, a neuron."""
        title = self._title(function, fed)
        neuron = self.graph.spikes.setdefault(title, SpikeNeuron(title))
        self.graph.relabel_last("neuron", title)
        neuron.calls += self.first
        neuron.ends = ends
        if self.first and neuron.function is None and function != "straight-through":
            numbers = tuple(float(v) if isinstance(v, Tensor) and v.numel() == 1 else v for v in call.rest)
            if not any(True for _ in tensors(numbers)):
                neuron.function = SpikeCall(call.apply, self._unwatched(lambda: call.u.new_zeros(0)), numbers)
        self.fed[result] = frozenset({_SPIKES_OF + title})
        if self.listener is not None:
            neuron.call = SpikeCall(call.apply, call.u.detach(), call.rest, result.detach())
            self._unwatched(lambda: self.listener.spike(neuron))  # type: ignore[union-attr]
            neuron.call = None

    def _title(self, function: str, fed: frozenset[str]) -> str:
        weights = frozenset(name for name in fed if not name.startswith(_SPIKES_OF))
        base = weights
        if not weights:  # fed by spikes alone: the neuron's own earlier spikes must not make it another one
            own = next((t for t, b in self._bases.items() if _SPIKES_OF + t in fed and b <= fed - {_SPIKES_OF + t}), "")
            base = fed - {_SPIKES_OF + own}
        title = f"{function} of {', '.join(sorted(name.removesuffix('.weight') for name in base)) or 'the input'}"
        title = self.graph.renamed.get(title, title)
        if not weights:
            self._bases[title] = base
        return title

    @contextmanager
    def hidden(self) -> Generator[None]:
        """Inside this context, calls are the library's own and are not recorded as parts of the model."""
        self.depth, inside, self.inside = self.depth + 1, self.inside, None
        try:
            with torch._C.DisableTorchFunction():
                yield
        finally:
            self.depth, self.inside = self.depth - 1, inside

    def _unwatched(self, run: Callable[[], Any]) -> Any:
        with self.hidden():
            return run()


def _applied(cls: Any, before: tuple[Any, ...]) -> Callable[..., Tensor]:
    return cls.apply if not before else lambda *args: cls.apply(*before, *args)


def _written(short: str, args: tuple[Any, ...]) -> Tensor | None:
    """The tensor that a function has written into. None if it made a new one."""
    in_place = short in WRITES or (short.endswith("_") and not short.endswith("__"))
    return args[0] if in_place and args and isinstance(args[0], Tensor) else None


def without_tensors(value: Any) -> Any:
    """The value with None for every tensor in it, lists as tuples."""
    if isinstance(value, Tensor):
        return None
    if isinstance(value, (tuple, list)):
        return tuple(without_tensors(v) for v in value)  # pyright: ignore[reportUnknownVariableType]
    return value
