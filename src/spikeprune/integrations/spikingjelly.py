"""SpikingJelly 2.0 and 0.0.0.0.14: single- and multi-step, IF/LIF/PLIF families and user subclasses of BaseNode.

SpikingJelly stores the potential after the reset, and its `v_seq` too. Criticality needs it before firing, so the
neuron is run once more without gradient: 2.0 has no charge step to hook, but every neuron implements
`single_step_functional_forward`, which hands v_pre - v_threshold to the surrogate; there it is read. Neurons with
`neuronal_charge` (0.0.0.0.14, and 2.0's SimpleBaseNode) are charged, fired and reset step by step instead, and plain
IF, LIF and PLIF neurons are integrated in closed form, which is faster.
"""

from collections.abc import Callable, Iterator
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from spikingjelly.activation_based import base, layer, neuron
from torch import Tensor, nn

from spikeprune.core.errors import InvalidValue, first_line
from spikeprune.core.neuron import charge, fire_and_reset
from spikeprune.host.quiet import leave_out_triton
from spikeprune.model.adapter import Adapter, NeuronParams
from spikeprune.model.fusing import Fusing, LearnedLeak

leave_out_triton()
_BASES = tuple(cls for name in ("BaseNode", "SimpleBaseNode") if (cls := getattr(neuron, name, None)) is not None)


class _Spy(nn.Module):
    """Stands in for the surrogate during one step and keeps what it was called with."""

    def __init__(self, surrogate: Any, every: bool = False) -> None:
        super().__init__()
        self.surrogate = surrogate
        self.every = every
        self.seen: Tensor | None = None
        self.calls: list[Tensor] = []

    def forward(self, u: Tensor) -> Tensor:
        if self.seen is None:  # a neuron with two thresholds fires twice; the first call is the positive one
            self.seen = u
        if self.every:
            self.calls.append(u)
        return self.surrogate(u)


class SpikingJelly(Adapter):
    """Reads SpikingJelly's neurons."""

    name = "spikingjelly"

    def is_neuron(self, module: nn.Module) -> bool:
        if isinstance(module, _BASES):
            return True
        return isinstance(module, (base.MemoryModule, base.StepModule)) and hasattr(module, "surrogate_function")

    def reset(self, model: nn.Module) -> None:
        for module in model.modules():
            reset = getattr(module, "reset", None)
            if callable(reset):
                reset()

    def begins(self, neuron: Any, args: tuple[Any, ...]) -> bool:
        return not any(isinstance(value, Tensor) for value in getattr(neuron, "_memories", {}).values())

    def multi_step(self, module: nn.Module) -> bool:
        return getattr(module, "step_mode", "s") == "m" or isinstance(module, base.MultiStepModule)

    def potentials(self, neuron: Any, args: tuple[Any, ...]) -> Iterator[Tensor]:
        x = args[0].detach()
        sequence = x if self.multi_step(neuron) else x.unsqueeze(0)
        plain = self.describe(neuron)
        if plain is not None:
            return _integrated(plain, neuron.v, sequence)
        if isinstance(neuron, _BASES) and (seen := self._shown(neuron, x, args[1:])) is not None:
            return seen
        if hasattr(neuron, "neuronal_charge") and not hasattr(neuron, "single_step_functional_forward"):
            return self._charged(neuron, sequence)
        if self.multi_step(neuron) and not isinstance(neuron, _BASES):
            return self._whole(neuron, x)  # parallel neurons and such have no step of their own
        if hasattr(neuron, "single_step_functional_forward"):
            return self._spied(neuron, sequence, (x, *args[1:]))
        raise InvalidValue(
            f"the potential of {type(neuron).__name__} before firing cannot be read; "
            "derive it from BaseNode or register an adapter of your own"
        )

    def _shown(self, neuron: Any, x: Tensor, more: tuple[Any, ...]) -> Iterator[Tensor] | None:
        """The surrogate's argument of each step, read while the neuron's own forward runs; its state is put back.

        None if the forward fails, or calls the surrogate neither once a step nor once on the whole sequence. A subclass
        may change the charge, the threshold, the reset or the whole step, so the equation of its class is not trusted.
        Args: more: further arguments of the forward.
        """
        saved = dict(neuron._memories)
        spy = _Spy(neuron.surrogate_function, every=True)
        # Copies, because a charge step of the user's may write in place (self.v += x).
        neuron._memories.update({k: v.detach().clone() for k, v in saved.items() if isinstance(v, Tensor)})
        neuron._modules["surrogate_function"] = spy
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                type(neuron).forward(neuron, x, *more)
        # A step of the user's may need what this call does not give; the potential is then read in another way.
        except (RuntimeError, ValueError, NotImplementedError, AssertionError, AttributeError, TypeError):
            return None
        finally:
            neuron._modules["surrogate_function"] = spy.surrogate
            neuron._memories.clear()
            neuron._memories.update(saved)
        steps = list(x) if self.multi_step(neuron) else [x]
        if len(spy.calls) == 1 and spy.calls[0].shape == x.shape and len(steps) > 1:
            return iter(spy.calls[0])
        fits = len(spy.calls) == len(steps) and all(u.shape == s.shape for u, s in zip(spy.calls, steps, strict=True))
        return iter(spy.calls) if fits else None

    def _whole(self, neuron: Any, x: Tensor) -> Iterator[Tensor]:
        """Runs the neuron's own forward on the whole sequence; yields the surrogate's argument of each step.

        The neuron's state is put back. Raises: InvalidValue if the forward fails, or calls the surrogate otherwise than
        once in all or once a step.
        """
        saved = dict(getattr(neuron, "_memories", {}))
        spy = _Spy(neuron.surrogate_function, every=True)
        with torch.no_grad():
            neuron._modules["surrogate_function"] = spy
            try:
                type(neuron).forward(neuron, x)
            except (RuntimeError, ValueError, NotImplementedError, AssertionError) as error:
                said = first_line(error, 120)
                raise InvalidValue(
                    f"{type(neuron).__name__} cannot take an input of shape {list(x.shape)}: {said}; see its own T and "
                    "step mode"
                ) from error
            finally:
                neuron._modules["surrogate_function"] = spy.surrogate
                if saved:
                    neuron._memories.update(saved)
        seen = spy.calls
        if len(seen) == 1 and seen[0].numel() == x.numel():
            return iter(seen[0].reshape(x.shape))
        if len(seen) == len(x) and all(u.numel() == x[0].numel() for u in seen):
            return iter([u.reshape(x.shape[1:]) for u in seen])
        raise InvalidValue(
            f"{type(neuron).__name__} calls its surrogate_function {len(seen)} times for {len(x)} time steps, so its "
            "potential at each step cannot be told; register an adapter of your own, or exclude the layers before it"
        )

    def _spied(self, neuron: Any, sequence: Tensor, inputs: tuple[Any, ...]) -> Iterator[Tensor]:
        with torch.no_grad():
            states = neuron.materialize_states(inputs, tuple(neuron._memories.values()), neuron.step_mode)
        for x in sequence:
            spy = _Spy(neuron.surrogate_function)
            with torch.no_grad():
                neuron._modules["surrogate_function"] = spy
                try:
                    _, states = neuron.single_step_functional_forward((x,), states)
                except (ValueError, NotImplementedError) as error:
                    said = first_line(error, 100)
                    raise InvalidValue(
                        f"{type(neuron).__name__} has no single step whose potential could be read ({said}); "
                        "register an adapter of your own, or exclude the layers before it"
                    ) from error
                finally:
                    neuron._modules["surrogate_function"] = spy.surrogate
            if spy.seen is None:
                raise InvalidValue(
                    f"{type(neuron).__name__} fires without its surrogate_function, so its potential cannot be read; "
                    "register an adapter of your own"
                )
            yield spy.seen.reshape(x.shape) if spy.seen.numel() == x.numel() else spy.seen

    def _charged(self, neuron: Any, sequence: Tensor) -> Iterator[Tensor]:
        saved = dict(neuron._memories)
        try:
            # Copies, because a charge step of the user's may write in place (self.v += x).
            neuron._memories.update({k: v.detach().clone() for k, v in saved.items() if isinstance(v, Tensor)})
            for x in sequence:
                with torch.no_grad():
                    if not isinstance(neuron.v, Tensor):
                        neuron.v = torch.full_like(x, float(neuron.v))
                    neuron.neuronal_charge(x)
                    u = neuron.v - neuron.v_threshold
                    neuron.neuronal_reset(neuron.surrogate_function(u))
                yield u
        finally:
            neuron._memories.update(saved)

    def surrogate(self, neuron: nn.Module) -> Any:
        return neuron.surrogate_function

    def smooth(self, neuron: Any, u: Tensor) -> Tensor:
        function = neuron.surrogate_function
        try:
            parameters = function._sg_params if hasattr(function, "_sg_params") else _parameters(function)
            return type(function).primitive_function(u, **parameters)
        except (AttributeError, NotImplementedError) as error:
            raise InvalidValue(
                f"{type(function).__name__} has no smooth forward curve, which curve='value' needs; "
                "give one by name, for example surrogate='atan'"
            ) from error

    def describe(self, neuron: Any) -> NeuronParams | None:
        if type(neuron) not in (_IF, _LIF, _PLIF):  # a subclass may have dynamics of its own
            return None
        if type(neuron) is _IF:
            decay = gain = 1.0
        else:
            leak = 1.0 / neuron.tau if type(neuron) is _LIF else neuron.w.detach().sigmoid().item()
            decay, gain = 1.0 - leak, leak if neuron.decay_input else 1.0
        return NeuronParams(
            decay=decay,
            gain=gain,
            v_threshold=neuron.v_threshold,
            v_reset=neuron.v_reset,
            v_rest=0.0 if neuron.v_reset is None else neuron.v_reset,
            strict=_is_strict(neuron.surrogate_function),
            detach_reset=neuron.detach_reset,
        )

    def plain_forward(self, neuron: Any) -> Callable[..., Tensor] | None:
        """A forward of the plain neuron in PyTorch functions, with the same result and state; None for other neurons.

        SpikingJelly 2.0 runs its plain neurons in operators of its own, which no tracer sees into.
        """
        p = self.describe(neuron)
        if p is None:
            return None

        def forward(x: Tensor) -> Tensor:
            steps = x.unbind() if self.multi_step(neuron) else (x,)
            v = neuron.v if isinstance(neuron.v, Tensor) else torch.full_like(steps[0], float(neuron.v))
            spikes: list[Tensor] = []
            for step in steps:
                v_pre = charge(step, v, p.decay, p.gain, p.v_rest * (1 - p.decay))
                fired, v = fire_and_reset(v_pre, p.v_threshold, p.v_reset, strict=p.strict)
                spikes.append(fired.to(x.dtype))
            neuron.v = v
            return torch.stack(spikes) if self.multi_step(neuron) else spikes[0]

        return forward

    def fusing(self) -> Fusing:
        return _FUSING

    def states(self, model: nn.Module) -> Any:
        return [(m, dict(m._memories)) for m in model.modules() if isinstance(m, base.MemoryModule)]

    def restore(self, model: nn.Module, states: Any) -> None:
        for module, memories in states:
            module._memories.update(memories)


_strict: WeakKeyDictionary[Any, tuple[Any, bool]] = WeakKeyDictionary()


def _is_strict(function: Any) -> bool:
    """Whether a neuron with this surrogate stays silent at v_pre = v_threshold.

    The answer is kept until a number of the surrogate changes: a fused neuron asks at every call, and a call of the
    surrogate costs as much as a small layer.
    """
    own = getattr(function, "__dict__", {})  # the `apply` of an autograd function has none in the newest torch
    state = tuple((key, value) for key, value in own.items() if isinstance(value, int | float))
    known = _strict.get(function)
    if known is None or known[0] != state:
        with torch.no_grad():
            known = _strict[function] = state, bool(function(torch.zeros(1)) == 0)
    return known[1]


@torch.no_grad()
def _integrated(p: NeuronParams, v: Any, sequence: Tensor) -> Iterator[Tensor]:
    """u = v_pre - v_threshold of a plain neuron, step by step. It reads memory a third as often as the neuron would.

    u = decay * w + gain * x + shift,   w = v - v_threshold of the step before
    """
    shift = p.v_rest * (1 - p.decay) - p.v_threshold * (1 - p.decay)
    w = v - p.v_threshold
    for x in sequence:
        u = (x * p.gain).add_(w * p.decay).add_(shift)
        yield u
        fires = u > 0 if p.strict else u >= 0
        w = u - p.v_threshold * fires if p.v_reset is None else u.masked_fill(fires, p.v_reset - p.v_threshold)


_IF, _LIF, _PLIF = neuron.IFNode, neuron.LIFNode, neuron.ParametricLIFNode


def _parameters(function: Any) -> dict[str, float]:
    # 0.0.0.0.14 keeps a single parameter, alpha, on most surrogates and has no list of them.
    return {"alpha": function.alpha}


_POOLS: dict[Any, Literal["max", "avg"]] = {layer.MaxPool2d: "max", layer.AvgPool2d: "avg"}
_NORMS = tuple(
    getattr(layer, f"{name}{d}d")
    for name in ("BatchNorm", "ThresholdDependentBatchNorm")
    for d in (1, 2, 3)
    if hasattr(layer, f"{name}{d}d")
)
_CONVOLUTIONS = (layer.Conv1d, layer.Conv2d, layer.Conv3d)


class SpikingJellyFusing(Fusing):
    """Tells `sp.fuse` of SpikingJelly's IF, LIF and PLIF in multi-step mode, and of the layers between them."""

    def carried(self, neuron: Any, N: int, shape: tuple[int, ...]) -> Tensor | float:
        v = neuron.v
        if not isinstance(v, Tensor):
            return float(v)
        if v.shape == (N, *shape):
            return v
        # SpikingJelly starts afresh when the batch has another shape.
        return 0.0 if neuron.v_reset is None else float(neuron.v_reset)

    def carry(self, neuron: Any, v: Tensor) -> None:
        neuron.v = v

    def usual(self, neuron: Any) -> bool:
        return not getattr(neuron, "store_v_seq", False) and getattr(neuron, "_neuron_precision", None) is None

    def steepness(self, neuron: Any) -> float | None:
        function = neuron.surrogate_function
        value = getattr(function, "alpha", getattr(function, "k", None))
        return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None

    def smooth(self, neuron: Any) -> bool:
        return not getattr(neuron.surrogate_function, "spiking", True)

    def leak(self, neuron: Any) -> LearnedLeak | None:
        if type(neuron) is not _PLIF:
            return None
        # decay = 1 - q, gain = q or 1, offset = v_rest * q
        v_rest = 0.0 if neuron.v_reset is None else neuron.v_reset
        return LearnedLeak(neuron.w.sigmoid(), (-1.0, 1.0 if neuron.decay_input else 0.0, v_rest))

    def sequence(self, module: Any) -> bool:
        return getattr(module, "step_mode", "s") == "m" or isinstance(module, base.MultiStepModule)

    def batch_norm(self, module: Any) -> Literal["", "merged", "per step"]:
        if type(module) in _NORMS:
            return "merged"
        kind = type(module)  # of the zoo, which stands above this folder
        return "per step" if (kind.__module__, kind.__name__) == _PER_STEP else ""

    def pooling(self, module: Any) -> Literal["", "max", "avg"]:
        kind = _POOLS.get(type(module), "")
        if not kind or any(value not in (2, (2, 2)) for value in (module.kernel_size, module.stride)):
            return ""
        if module.padding not in (0, (0, 0)) or module.ceil_mode:
            return ""
        if kind == "max":
            return "max" if module.dilation in (1, (1, 1)) and not module.return_indices else ""
        return "avg" if module.divisor_override is None else ""

    def convolution(self, module: Any) -> bool:
        return type(module) in _CONVOLUTIONS


_PER_STEP = ("spikeprune.zoo.paper", "BatchNorm2dPerStep")
_FUSING = SpikingJellyFusing()
