"""The Probe: hooks that feed statistics during a few forwards, and are always taken away again."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from spikeprune.core.errors import InvalidValue
from spikeprune.core.statistic import LaidOver, Statistic
from spikeprune.methods.base import Method
from spikeprune.model.adapter import Adapter
from spikeprune.model.arguments import Arguments, on_call
from spikeprune.model.discover import Discovered, SpikeCall, SpikeNeuron, title_of
from spikeprune.model.pairing import Pairing
from spikeprune.model.site import ProbeSite
from spikeprune.model.trace import Graph, Tracer, batch_of
from spikeprune.model.weights import Multiplication, Use


class Probe:
    """Records a method's statistic while it is installed.

    One statistic per neuron (`ChannelMean`), shared by the layers that feed it, or one per weight (`reads_input`).
    `calls` counts how often a hook of ours ran, none while the Probe is not installed; `begun` the sequences seen.
    """

    def __init__(
        self,
        model: nn.Module,
        adapter: Adapter,
        pairs: Mapping[str, Pairing],
        method: Method,
        *,
        needs_grad: bool,
        graph: Graph | None = None,
    ) -> None:
        """`graph` is the traced forward.

        `needs_grad`: skip forwards without gradient, such as the user's validation between two steps.

        Raises: InvalidValue if a weight's channels cannot be told at its neuron.
        """
        self.adapter = adapter
        self.needs_grad = needs_grad
        self.calls = 0
        self.begun = 0
        self._model, self._graph = model, graph
        self._handles: list[Any] = []
        self._tracer: Tracer | None = None  # sees the neurons that are no modules
        self._driving = False  # whether a neuron runs once more, to show its potential and what its own weights read
        self._live = True  # whether the present forward is recorded
        modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
        self.sites: dict[str, ProbeSite] = {}
        for name, pair in pairs.items():
            if pair.neuron is not None:
                neuron = modules[pair.neuron] if pair.found is None else pair.found
                known = adapter if pair.found is None else Discovered()
                self.sites[name] = ProbeSite(
                    name, parameters[name], modules.get(pair.layer), neuron, known, pair.use, pair.inner
                )
        joined = [name for name in self.sites if pairs[name].joined]
        if joined:
            raise InvalidValue(
                f"{joined[0]!r} reaches {pairs[joined[0]].neuron!r} through a cat, so its channels there cannot be "
                f"told; pass exclude=[{joined[0]!r}]"
            )
        self.statistics: dict[str, Statistic] = {}
        self._by_neuron: dict[nn.Module, list[str]] = {}  # neuron -> weights whose statistic its potential feeds
        self._shared: dict[str, str] = {}  # weight -> weight whose statistic it shares
        self._inputs: dict[str, Tensor] = {}
        self._called: dict[nn.Module, int] = {}
        self._reused: dict[str, Tensor] = {}  # of this sequence, the latest input of each layer
        first: dict[nn.Module, str] = {}
        for name, site in self.sites.items():
            statistic = method.statistic(site)
            owner = first.setdefault(site.neuron, name)
            if statistic.reads_input or owner == name:
                self.statistics[name] = statistic
                self._by_neuron.setdefault(site.neuron, []).append(name)
                self._shared[name] = name
            else:
                self._agree(owner, name)
                self._shared[name] = owner
        self._synapses = any(s.reads_input for s in self.statistics.values())

    def _agree(self, owner: str, name: str) -> None:
        if self.sites[owner].channels != self.sites[name].channels:
            raise InvalidValue(
                f"{owner!r} and {name!r} feed one neuron but have {self.sites[owner].channels} and "
                f"{self.sites[name].channels} outputs, so its channels cannot be told; pass "
                f"exclude=[{name!r}]"
            )

    @property
    def installed(self) -> bool:
        """Whether hooks are on the model now."""
        return bool(self._handles) or self._tracer is not None

    def install(self) -> None:
        """Puts the hooks on. Does nothing if they are on."""
        if self.installed:
            return
        for neuron in self._by_neuron:
            if not isinstance(neuron, SpikeNeuron):
                self._handles.append(on_call(neuron, self._fires))
        found = any(isinstance(neuron, SpikeNeuron) for neuron in self._by_neuron)
        if found or (self._synapses and any(site.use is not None for site in self.sites.values())):
            self._tracer = Tracer(
                self._model, self.adapter, lambda _: None, listener=self, known=self._graph, once=False
            )
        if self._synapses:
            for name, site in self.sites.items():
                if (site.use is None or site.inner) and site.layer is not None:
                    self._handles.append(on_call(site.layer, self._keeps(name)))

    def remove(self) -> None:
        """Takes every hook off and forgets inputs in flight; what was recorded stays."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if self._tracer is not None:
            self._tracer.remove()
            self._tracer = None
        self._inputs.clear()
        self._reused.clear()

    def _keeps(self, name: str) -> Callable[[nn.Module, Arguments], None]:
        def keep(_: nn.Module, given: Arguments) -> None:
            self.calls += 1
            if not self.needs_grad or torch.is_grad_enabled() or self._driving:
                self._inputs[name] = given.first

        return keep

    def _fires(self, neuron: nn.Module, given: Arguments) -> None:
        self.calls += 1
        if self.needs_grad and not torch.is_grad_enabled():
            return
        args = given.values
        hidden = nullcontext() if self._tracer is None else self._tracer.watch.hidden()
        with torch.no_grad(), torch.autocast(args[0].device.type, enabled=False), hidden:
            self._record(neuron, args)

    def _record(self, neuron: nn.Module, args: tuple[Any, ...]) -> None:
        names = self._by_neuron[neuron]
        if self.adapter.begins(neuron, args):
            self.begun += 1
            for name in names:
                self._reused.pop(name, None)
                self.statistics[name].begin()
        inputs = self._inputs_of(names)
        steps = args[0].shape[0] if self.adapter.multi_step(neuron) else 1
        self._driving = True
        try:
            for t, u in enumerate(self.adapter.potentials(neuron, args)):
                u = u.float()
                for name in names:
                    site = self.sites[name]
                    # The neuron's own recurrent weights have just read its spikes of the step before.
                    x = self._inputs.get(name) if site.inner else inputs.get(name)
                    self._step(name, site.laid(u), None if x is None else _at_step(x, t, steps, u.shape[0]))
        finally:
            self._driving = False

    def _step(self, name: str, value: Tensor, x: Tensor | None) -> None:
        try:
            self.statistics[name].step(value, x)
        except LaidOver as error:
            site = self.sites[name]
            raise InvalidValue(
                f"{name!r} gives {list(error.layer)}, and {title_of(site.neuron)} behind it sees {list(error.neuron)} "
                f"at a time step, so its single synapses cannot be told; pass exclude=[{name!r}] or unit='neuron'"
            ) from error

    def enter(self, given: Arguments) -> None:
        """Called if the model was already called when the hooks were put on: this forward is recorded too."""
        if self._tracer is not None:
            self._tracer.enter(self._model, given)

    # -- what no hook on a module sees: see model.watch.Listener -----------------------------------------------------

    def began(self) -> None:
        """A forward begins: a new sequence for every neuron that is no module."""
        self._live = not self.needs_grad or torch.is_grad_enabled()
        found = [names for neuron, names in self._by_neuron.items() if isinstance(neuron, SpikeNeuron)]
        self._called.clear()
        if self._live and found:
            self.begun += 1
            for name in (name for names in found for name in names):
                self._reused.pop(name, None)
                self.statistics[name].begin()

    def used(self, use: Use, operation: Multiplication) -> None:
        """Keeps the input of a weight that a function multiplied with."""
        site = self.sites.get(use.weight)
        if self._live and site is not None and site.use is not None and self._synapses:
            site.operation = operation
            self._inputs[use.weight] = operation.x.detach()

    def spike(self, neuron: SpikeNeuron) -> None:
        """Records a call of a spike function."""
        self.calls += 1
        if not self._live or neuron not in self._by_neuron or neuron.call is None:
            return
        names = self._by_neuron[neuron]
        inputs = self._inputs_of(names)
        number = self._called[neuron] = self._called.get(neuron, -1) + 1  # of this call in the forward
        with torch.no_grad(), torch.autocast(neuron.call.u.device.type, enabled=False):
            steps = self._steps(neuron, self.sites[names[0]])
            for t, call in enumerate(steps):
                for name in names:
                    site, x = self.sites[name], inputs.get(name)
                    neuron.call = _by_channels(call, site)
                    value = site.laid(call.u.float())
                    if x is not None:  # a layer may see all steps at once before a loop over them
                        at, count = (t, len(steps)) if len(steps) > 1 else (number, neuron.calls)
                        if count > 1 and x.ndim > 2 and tuple(x.shape[:2]) == (count, count) == (count, len(call.u)):
                            raise InvalidValue(
                                f"the input of {name!r} is {list(x.shape)}, in which {count} time steps cannot be told "
                                f"from {count} samples; give a batch of another size, or take unit='neuron'"
                            )
                        x = _at_step(x, at, count, call.u.shape[0])
                    # Recurrent weights have no input yet at the first step, so there is nothing to sum.
                    if x is not None or site.use is None or not self.statistics[name].reads_input:
                        self._step(name, value, x)

    def _inputs_of(self, names: list[str]) -> dict[str, Tensor]:
        """The inputs of these layers at this call of their neuron.

        A first layer outside of the time loop is called once, and its input counts for every step.
        """
        fresh = {name: self._inputs.pop(name) for name in names if name in self._inputs}
        self._reused.update(fresh)
        return {name: self._reused[name] for name in names if name in self._reused}

    def _steps(self, neuron: SpikeNeuron, site: ProbeSite) -> list[SpikeCall]:
        """The call's time steps: one, unless a whole sequence is in it."""
        call = neuron.call
        assert call is not None
        rank = 2 if site.channels_last else site.parameter.dim()
        if neuron.calls != 1 or call.u.dim() != rank + 1:
            return [call]
        samples = None if self._graph is None else batch_of(self._graph)
        first = samples == call.u.shape[0] != call.u.shape[1]  # [N, T, ...]: samples first
        count = call.u.shape[1 if first else 0]

        def at(value: Any, t: int) -> Any:
            whole = isinstance(value, Tensor) and value.dim() == call.u.dim() and value.shape[int(first)] == count
            return value.select(int(first), t) if whole else value

        return [SpikeCall(call.apply, at(call.u, t), tuple(at(v, t) for v in call.rest)) for t in range(count)]

    def add(self, totals: Mapping[str, tuple[Tensor | None, float]]) -> None:
        """Goes on from (sum, count) of each weight's statistic, as `totals` gives them."""
        for name, (total, count) in totals.items():
            if total is not None and name in self.statistics:
                self.statistics[name].add(total.to(self.sites[name].parameter.device), count)

    def totals(self) -> dict[str, tuple[Tensor | None, float]]:
        """Weight name -> (sum, count) recorded so far, for saving."""
        for statistic in self.statistics.values():
            statistic.begin()
        return {name: (statistic.total, statistic.count) for name, statistic in self.statistics.items()}

    def results(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """Weight name -> statistic. `reduce` sums a tensor over ranks.

        Raises: MissingEvidence if nothing was recorded.
        """
        results: dict[str, Tensor] = {}
        for name, statistic in self.statistics.items():
            statistic.begin()
            if statistic.total is not None:
                statistic.total = reduce(statistic.total)
                count = reduce(torch.tensor(statistic.count, dtype=torch.float64, device=statistic.total.device))
                statistic.count = float(count)
            results[name] = statistic.result()
        return {name: results[owner] for name, owner in self._shared.items()}

    def share(self, ranks: float) -> None:
        """After `results`, which sums over ranks: leaves each rank its part, so that the sums may go on."""
        for statistic in self.statistics.values():
            if statistic.total is not None:
                statistic.total, statistic.count = statistic.total / ranks, statistic.count / ranks


def _by_channels(call: SpikeCall, site: ProbeSite) -> SpikeCall:
    """The call as a function of u as `as_channels` lays it out: what else it reads lies as u did."""
    shape, moved = call.u.shape, site.channels_last and call.u.dim() > 2 and call.u.shape[-1] == site.channels

    def apply(value: Tensor) -> Tensor:
        u = value.movedim(1, -1) if moved else value.reshape(shape)
        return site.laid(call(u))

    return SpikeCall(apply, call.u)


def _at_step(x: Tensor, t: int, steps: int, batch: int) -> Tensor:
    """The layer's input at time step t: from [T, N, ...], from [T * N, ...], or the same at all steps ([N, ...])."""
    if steps > 1 and x.shape[0] == steps and x.ndim > 2 and x.shape[1] == batch:
        return x[t]
    if steps > 1 and x.ndim > 2 and x.shape[0] == batch and x.shape[1] == steps:
        return x[:, t]
    if x.shape[0] == steps * batch:
        return x.view(steps, batch, *x.shape[1:])[t]
    if x.shape[0] == 1 and x.shape[1] == batch:  # a multi-step layer fed a single time step
        return x[0]
    return x
