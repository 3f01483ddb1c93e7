"""Norse: feed-forward cells (LIFCell, LIFBoxCell, IAFCell, ...) and the modules that run them over time (LIF, ...).

Norse's neurons are pure functions, state in and state out, and every one of them hands v_pre - v_threshold to
`threshold`. The cell's function is run once more without gradient, with that name bound to a spy for the moment.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from norse.torch.functional.threshold import threshold
from norse.torch.module.leaky_integrator import LILinearCell
from norse.torch.module.snn import SNN, SNNCell, SNNRecurrent, SNNRecurrentCell
from torch import Tensor, nn

from spikeprune.core.errors import InvalidValue
from spikeprune.model.adapter import Adapter, NeuronParams


class Norse(Adapter):
    """Reads Norse's neurons. Their state is an argument, so there is nothing to reset."""

    name = "norse"

    def is_neuron(self, module: nn.Module) -> bool:
        """True for a Norse cell or module whose step function comes from a file that uses Norse's `threshold`.

        Leaky integrators have none, as they fire no spikes.

        Recurrent cells and those that call another file's step are found by their spike function instead.
        """
        if not isinstance(module, (SNN, SNNCell)):
            return False
        return "threshold" in getattr(module.activation, "__globals__", {})

    def weights(self, module: nn.Module) -> tuple[str, ...]:
        if isinstance(module, (SNNRecurrent, SNNRecurrentCell)):
            return "input_weights", "recurrent_weights"
        return ("input_weights",) if isinstance(module, LILinearCell) else ()

    def reset(self, model: nn.Module) -> None:
        pass

    def states(self, model: nn.Module) -> Any:
        return None

    def restore(self, model: nn.Module, states: Any) -> None:
        pass

    def begins(self, neuron: nn.Module, args: tuple[Any, ...]) -> bool:
        return len(args) < 2 or args[1] is None

    def multi_step(self, module: nn.Module) -> bool:
        return isinstance(module, SNN)

    def potentials(self, neuron: Any, args: tuple[Any, ...]) -> Iterator[Tensor]:
        x = args[0].detach()
        steps = x if self.multi_step(neuron) else x.unsqueeze(0)
        state = neuron.state_fallback(steps[0]) if self.begins(neuron, args) else args[1]
        for x_t in steps:
            with torch.no_grad():
                u, state = _spied(neuron, x_t, state)
            yield u

    def surrogate(self, neuron: Any) -> Any:
        parameters = neuron.p
        if not hasattr(parameters, "method"):
            raise InvalidValue(
                f"{type(neuron).__name__} keeps no surrogate where the other neurons of Norse do (its parameters have "
                "no 'method'); use a method that needs none, such as 'magnitude', or register an adapter of your own"
            )
        return lambda u: threshold(u, parameters.method, parameters.alpha)

    def smooth(self, neuron: Any, u: Tensor) -> Tensor:
        raise InvalidValue(
            f"Norse gives no smooth forward curve for {neuron.p.method!r}, which curve='value' needs; "
            "give one by name, for example surrogate='atan'"
        )

    def describe(self, neuron: Any) -> NeuronParams | None:
        p = neuron.p
        if not hasattr(p, "tau_mem_inv") or hasattr(p, "tau_syn_inv"):
            return None  # a synaptic current is a second state: no plain integrate-and-fire neuron
        if getattr(p, "reset_method", None) is None or p.reset_method.__name__ not in ("reset_value", "reset_subtract"):
            return None
        leak = neuron.dt * p.tau_mem_inv
        return NeuronParams(
            decay=1 - leak,
            gain=leak,
            v_threshold=p.v_th,
            v_reset=p.v_reset if p.reset_method.__name__ == "reset_value" else None,
            v_rest=p.v_leak,
            strict=True,
        )


def _spied(neuron: Any, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    """Runs one step of the cell's own function. Returns the argument that `threshold` got, and the new state.

    Raises: InvalidValue if the function does not call it: a step may leave that to another file, or be another by now.
    """
    function: Callable[..., Any] = neuron.activation
    names = getattr(function, "__globals__", {})
    replaced = {key: names[key] for key in ("threshold",) if key in names}
    seen: list[Tensor] = []

    def spy(u: Tensor, *rest: Any) -> Tensor:
        seen.append(u)
        return replaced["threshold"](u, *rest)

    names.update(dict.fromkeys(replaced, spy))
    try:
        _, state = function(x, state, neuron.p, neuron.dt)
    finally:
        names.update(replaced)
    if not seen:
        raise InvalidValue(
            f"the step of {type(neuron).__name__} does not call Norse's threshold function itself, so its potential "
            "cannot be read; call it there, or register an adapter of your own"
        )
    return seen[0], state
