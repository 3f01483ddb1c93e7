"""Spike functions are found, not registered: neurons that are no module of a known framework.

Nearly every surrogate gradient is a `torch.autograd.Function` whose `forward` is looked up on its class at each call,
so the calls of one forward can be watched without touching the model. A neuron is then the set of weights that feed
the call: this unites the time steps of a loop, needs no module, and separates layers that share one neuron object.
"""

import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from spikeprune.core.errors import InvalidValue
from spikeprune.model.adapter import Adapter, NeuronParams, adapter_for, find_adapter, surrogate_derivative
from spikeprune.model.operations import leaf_kind

_FAR = 1e4  # beyond any threshold, and still a number in half precision


@dataclass(frozen=True)
class SpikeCall:
    """One call of a spike function.

    Attributes:
        apply: u, rest -> spikes, with the surrogate gradient.
        u: what it was called with, v_pre - v_threshold or v_pre.
        rest: the other arguments.
        spikes: what it returned, while a forward is recorded.
    """

    apply: Callable[..., Tensor]
    u: Tensor
    rest: tuple[Any, ...] = ()
    spikes: Tensor | None = None

    def __call__(self, u: Tensor) -> Tensor:
        """The spikes at another u of the same shape, or of one that `rest` broadcasts to."""
        return self.apply(u, *self.rest)


@final
class SpikeNeuron(nn.Module):
    """Stands for a neuron that is no module: all calls of one spike function that the same weights feed.

    Attributes:
        title: its name in the graph, made of the spike function and the layers before it.
        calls: how often it was called in the traced forward.
        call: the call that is being recorded, None outside of a recorded forward.
        function: u of any shape -> spikes, None where the function depends on more than numbers.
        ends: of a straight-through sum, the function that it ends with.
    """

    def __init__(self, title: str) -> None:
        super().__init__()
        self.title = title
        self.calls = 0
        self.call: SpikeCall | None = None
        self.function: SpikeCall | None = None
        self.ends: str | None = None

    def forward(self, u: Tensor) -> Tensor:
        """The spikes that the present call's function gives at u."""
        if self.call is None:
            raise InvalidValue(f"{self.title!r} was not called yet, so its spike function is not known")
        return self.call(u)


@final
class Discovered(Adapter):
    """Neurons that no framework's adapter knows. Their state is the model's own business."""

    name = "discovered"

    def is_neuron(self, module: nn.Module) -> bool:
        return isinstance(module, SpikeNeuron)

    def reset(self, model: nn.Module) -> None:
        """Calls `reset()` of every module that has one, as user code and old SpikingJelly do it."""
        for module in model.modules():
            reset = getattr(module, "reset", None)
            if callable(reset) and not type(module).__module__.startswith("torch."):
                reset()

    def begins(self, neuron: nn.Module, args: tuple[Any, ...]) -> bool:
        return False  # the watch tells when a forward begins

    def potentials(self, neuron: nn.Module, args: tuple[Any, ...]) -> Iterator[Tensor]:
        yield args[0].detach()

    def surrogate(self, neuron: nn.Module) -> Any:
        return neuron

    def smooth(self, neuron: nn.Module, u: Tensor) -> Tensor:
        raise InvalidValue(
            f"{title_of(neuron)} is known by its spikes and its gradient only and has no smooth forward curve, which "
            "curve='value' needs; give one by name, for example surrogate='atan'"
        )

    def describe(self, neuron: nn.Module) -> NeuronParams | None:
        return None

    def multi_step(self, module: nn.Module) -> bool:
        return False

    def states(self, model: nn.Module) -> Any:
        """Every tensor and number that a module keeps as a plain attribute: user code keeps its potentials there."""
        return [
            (module, dict(_attributes(module)), set(module.__dict__), dict(module.__dict__.get("_memories", {})))
            for module in model.modules()
        ]

    def restore(self, model: nn.Module, states: Any) -> None:
        for module, saved, names, memories in states:
            if memories:  # where old SpikingJelly keeps its states
                module.__dict__["_memories"].update(memories)
            for name, _ in _attributes(module):
                if name not in names:
                    del module.__dict__[name]
            module.__dict__.update(saved)

    def derivative(self, neuron: nn.Module, u: Tensor) -> Tensor:
        return surrogate_derivative(neuron, u)


def _attributes(module: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, value in list(module.__dict__.items()):
        if not name.startswith("_") and (value is None or isinstance(value, (Tensor, int, float, list, tuple))):
            yield name, value


def title_of(neuron: nn.Module) -> str:
    """The name of a neuron in messages."""
    return repr(neuron.title) if isinstance(neuron, SpikeNeuron) else type(neuron).__name__


def fires(call: SpikeCall, spikes: Tensor) -> bool:
    """Whether a call is that of a spike function: 0 far below its threshold, one value far above, no others between."""
    if spikes.shape != call.u.shape or not (spikes.is_floating_point() and call.u.is_floating_point()):
        return False
    if call.u.numel() == 0:
        return False
    with torch.no_grad():
        high = call(torch.full_like(call.u, _FAR))
        top = high.flatten()[0]
        if not bool(top > 0) or not bool((high == top).all()) or bool(top > _FAR / 10):
            return False
        if not bool((call(torch.full_like(call.u, 4 * _FAR)) == top).all()):
            return False
        low = call(torch.full_like(call.u, -_FAR))
        if not bool(((low == 0) | (low == -top)).all()):
            return False
        # Each value for itself: a function that runs over time by itself, such as a whole neuron's, is none.
        signs = torch.rand(call.u.shape, generator=torch.Generator().manual_seed(0)).to(call.u.device) < 0.5
        mixed = torch.full_like(call.u, -_FAR).masked_fill(signs, _FAR)
        if not torch.equal(call(mixed), torch.where(signs, high, low)):
            return False
        levels = spikes.detach().unique()
        return bool(((levels == 0) | (levels.abs() == top) | (levels == levels.round())).all())


def _functions(base: type = torch.autograd.Function) -> Iterator[type]:
    for cls in base.__subclasses__():
        yield cls
        yield from _functions(cls)


Seen = Callable[[type, tuple[Any, ...], Callable[[], Any]], Any]


@contextmanager
def functions_watched(seen: Seen) -> Generator[None]:
    """Every autograd function called on this thread goes through `seen(class, arguments, run)`, which returns run()."""
    thread = threading.get_ident()
    saved: list[tuple[type, Any]] = []
    for cls in set(_functions()):
        if "forward" not in cls.__dict__ or cls.__module__.startswith("torch."):
            continue
        kept = cls.__dict__["forward"]
        saved.append((cls, kept))
        cls.forward = staticmethod(_spied(cls, kept, thread, seen))  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for cls, kept in saved:
            cls.forward = kept  # type: ignore[attr-defined]


def _spied(cls: type, kept: Any, thread: int, seen: Seen) -> Callable[..., Any]:
    original = kept.__func__ if isinstance(kept, (staticmethod, classmethod)) else kept
    # Where setup_context is defined, forward gets no context.
    skip = 0 if _has_setup(cls) else 1

    def forward(*args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != thread:
            return original(*args, **kwargs)
        return seen(cls, args[skip:], lambda: original(*args, **kwargs))

    return forward


def _has_setup(cls: type) -> bool:
    return getattr(cls, "setup_context", None) is not torch.autograd.Function.setup_context


def spiking_adapter(model: nn.Module) -> Adapter:
    """The adapter of a model's neurons; where no module is a known neuron, they are found when the model is called.

    Raises: InvalidValue if the model consists of PyTorch's own modules, so that no spike function can be in it.
    """
    found = find_adapter(model)
    if found is not None:
        return found
    return adapter_for(model) if all_of_torch(model) else Discovered()


NOT_FOUND = (
    "no spiking neuron was found: no module that an adapter knows, and no spike function (a torch.autograd.Function or "
    "a straight-through sum) in a forward; an adapter of your own tells it: spikeprune.integrations.register_adapter"
)


def all_of_torch(model: nn.Module) -> bool:
    """Whether every module is one of PyTorch's own, or derived from its layers: no spike function can be called."""
    return all(type(m).__module__.startswith("torch.") or leaf_kind(m, None) is not None for m in model.modules())
