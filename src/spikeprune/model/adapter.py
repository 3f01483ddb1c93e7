"""The interface through which the rest of the library reads a spiking framework.

An `Adapter` is the only thing that knows a framework. It tells which modules are neurons, what their membrane
potential was before firing, and how to reset them. Nothing here is ever called in a step that records nothing.
"""

import abc
import importlib
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spikeprune.core.errors import InvalidValue
from spikeprune.model.fusing import Fusing


@dataclass(frozen=True)
class NeuronParams:
    """An integrate-and-fire neuron in one normal form (`core.neuron.lif_step`).

        v_pre = v_rest + decay * (v - v_rest) + gain * x
        spike = v_pre >= v_threshold           (`>` if `strict`)
        v     = v_reset where spike, else v_pre  (v_pre - v_threshold * spike if `v_reset` is None)

    Numbers, or tensors that broadcast against one time step of the input, [N, C, *space].
    """

    decay: float | Tensor
    gain: float | Tensor
    v_threshold: float | Tensor
    v_reset: float | Tensor | None = 0.0
    v_rest: float | Tensor = 0.0
    strict: bool = False
    detach_reset: bool = False


class Adapter(abc.ABC):
    """A spiking framework as the library sees it. Tensors are time first, [T, N, C, *space]."""

    name: str

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "drive" in vars(cls) and "potentials" not in vars(cls):  # an adapter that was written for version 0.1
            message = f"{cls.__name__}.drive is now called potentials; the old name goes away in version 0.3"
            warnings.warn(message, DeprecationWarning, stacklevel=2)
            cls.potentials = vars(cls)["drive"]

    @abc.abstractmethod
    def is_neuron(self, module: nn.Module) -> bool:
        """Whether the module fires spikes."""

    @abc.abstractmethod
    def reset(self, model: nn.Module) -> None:
        """Forget every membrane potential in the model."""

    @abc.abstractmethod
    def begins(self, neuron: nn.Module, args: tuple[Any, ...]) -> bool:
        """Whether a call with `args` would start a new sequence (no membrane potential carried over)."""

    @abc.abstractmethod
    def potentials(self, neuron: nn.Module, args: tuple[Any, ...]) -> Iterator[Tensor]:
        """Yield v_pre - v_threshold, [N, C, *space], for each time step of a call with `args`.

        Reads the neuron's state and leaves it alone; runs without gradient.
        """

    @abc.abstractmethod
    def surrogate(self, neuron: nn.Module) -> Any:
        """The neuron's spike function: a callable on v_pre - v_threshold, with its surrogate gradient."""

    @abc.abstractmethod
    def smooth(self, neuron: nn.Module, u: Tensor) -> Tensor:
        """The smooth curve at u = v_pre - v_threshold. The surrogate's derivative is the derivative of this curve.

        Raises: InvalidValue if the framework has no such curve for this surrogate.
        """

    @abc.abstractmethod
    def describe(self, neuron: nn.Module) -> NeuronParams | None:
        """The neuron in normal form, or None if it is not a plain integrate-and-fire neuron."""

    @abc.abstractmethod
    def multi_step(self, module: nn.Module) -> bool:
        """Whether the module takes whole sequences, [T, N, ...], rather than one time step."""

    @abc.abstractmethod
    def states(self, model: nn.Module) -> Any:
        """The membrane state of all neurons, to be handed back to `restore`."""

    @abc.abstractmethod
    def restore(self, model: nn.Module, states: Any) -> None:
        """Restores the state that `states` returned."""

    def plain_forward(self, neuron: nn.Module) -> Callable[..., Any] | None:
        """The neuron's forward in PyTorch's own functions, on its own state; None if it consists of those already."""
        return None

    def weights(self, module: nn.Module) -> tuple[str, ...]:
        """Names of the module's own parameters that are weights, though it is no Conv or Linear layer."""
        return ()

    def neurons(self, model: nn.Module) -> dict[str, nn.Module]:
        """Name -> neuron, in the order of `named_modules`."""
        return {name: module for name, module in model.named_modules() if self.is_neuron(module)}

    def derivative(self, neuron: nn.Module, u: Tensor) -> Tensor:
        """The surrogate's derivative at u = v_pre - v_threshold, from the neuron's own backward; same shape as u."""
        return surrogate_derivative(self.surrogate(neuron), u)

    def fusing(self) -> Fusing | None:
        """How `sp.fuse` may run these neurons in its kernel, None if it may not."""
        return None


class Mixed(Adapter):
    """Neurons of several kinds in one model: each is handed to the adapter that knows it."""

    def __init__(self, adapters: list[Adapter]) -> None:
        self.adapters = adapters
        self.name = " and ".join(adapter.name for adapter in adapters)

    def _of(self, neuron: nn.Module) -> Adapter:
        return next(adapter for adapter in self.adapters if adapter.is_neuron(neuron))

    def is_neuron(self, module: nn.Module) -> bool:
        return any(adapter.is_neuron(module) for adapter in self.adapters)

    def reset(self, model: nn.Module) -> None:
        for adapter in self.adapters:
            adapter.reset(model)

    def begins(self, neuron: nn.Module, args: tuple[Any, ...]) -> bool:
        return self._of(neuron).begins(neuron, args)

    def potentials(self, neuron: nn.Module, args: tuple[Any, ...]) -> Iterator[Tensor]:
        return self._of(neuron).potentials(neuron, args)

    def surrogate(self, neuron: nn.Module) -> Any:
        return self._of(neuron).surrogate(neuron)

    def smooth(self, neuron: nn.Module, u: Tensor) -> Tensor:
        return self._of(neuron).smooth(neuron, u)

    def describe(self, neuron: nn.Module) -> NeuronParams | None:
        return self._of(neuron).describe(neuron)

    def multi_step(self, module: nn.Module) -> bool:
        return any(adapter.is_neuron(module) and adapter.multi_step(module) for adapter in self.adapters)

    def states(self, model: nn.Module) -> Any:
        return [adapter.states(model) for adapter in self.adapters]

    def restore(self, model: nn.Module, states: Any) -> None:
        for adapter, saved in zip(self.adapters, states, strict=True):
            adapter.restore(model, saved)

    def derivative(self, neuron: nn.Module, u: Tensor) -> Tensor:
        return self._of(neuron).derivative(neuron, u)

    def plain_forward(self, neuron: nn.Module) -> Callable[..., Any] | None:
        return self._of(neuron).plain_forward(neuron)


def surrogate_derivative(spike_function: Any, u: Tensor) -> Tensor:
    """d spike / d u by the spike function's own backward: one elementwise pass, no network involved.

    Raises: InvalidValue if the function has no gradient.
    """
    with torch.enable_grad():
        leaf = u.detach().requires_grad_()
        spike = spike_function(leaf)
        if not (isinstance(spike, Tensor) and spike.requires_grad):
            raise InvalidValue(
                f"the spike function {spike_function!r} has no surrogate gradient; give one by name: surrogate='atan'"
            )
        return torch.autograd.grad(spike, leaf, spike.new_ones(()).expand_as(spike))[0]


# Framework -> where its adapter stands. A model can only hold a framework's neurons if the framework has been
# imported already, so nothing is ever imported just to look.
_BUILT_IN = {
    "spikingjelly": "spikeprune.integrations.spikingjelly:SpikingJelly",
    "snntorch": "spikeprune.integrations.snntorch:SnnTorch",
    "norse": "spikeprune.integrations.norse:Norse",
}
_registered: list[Adapter] = []


def register_adapter(adapter: Adapter) -> Adapter:
    """Adds an adapter for neurons of the user's own; it is asked before the built-in ones."""
    _registered.insert(0, adapter)
    return adapter


def _adapters() -> Iterator[Adapter]:
    yield from _registered
    for framework, place in _BUILT_IN.items():
        if framework in sys.modules:
            module, name = place.split(":")
            try:
                yield getattr(importlib.import_module(module), name)()
            except ImportError:
                # A version without what the adapter reads, such as SpikingJelly 0.0.0.0.12 (clock_driven): its neurons
                # are found by their spike functions, and it stands in nobody's way.
                continue


def weights_of_neurons(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name -> parameter of the weights that neuron modules hold themselves, such as recurrent weights."""
    adapters = list(_adapters())
    return {
        f"{name}.{local}".removeprefix("."): parameter
        for name, module in model.named_modules()
        for adapter in adapters
        for local in adapter.weights(module)
        if isinstance(parameter := getattr(module, local, None), nn.Parameter)
    }


def find_adapter(model: nn.Module) -> Adapter | None:
    """The adapter that knows the neurons of this model, None if there are none.

    Each neuron belongs to the first adapter that knows it. If that makes several, one adapter stands for all.
    """
    found: dict[type[Adapter], Adapter] = {}
    adapters = list(_adapters())
    for module in model.modules():
        adapter = next((a for a in adapters if a.is_neuron(module)), None)
        if adapter is not None:
            found.setdefault(type(adapter), adapter)
    if len(found) < 2:
        return next(iter(found.values()), None)
    return Mixed([a for a in adapters if a in found.values()])


def adapter_for(model: nn.Module) -> Adapter:
    """The adapter for a spiking model.

    Raises: InvalidValue if no adapter knows a neuron in the model.
    """
    adapter = find_adapter(model)
    if adapter is None:
        raise InvalidValue(
            f"{type(model).__name__} has no spiking neuron among its modules that is known here. Prune, squeeze, "
            "count, compile and the exports find spike functions in a forward by themselves; this needs an adapter for "
            "your neurons: spikeprune.integrations.register_adapter"
        )
    return adapter
