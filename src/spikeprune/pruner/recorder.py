"""When to look: traces the first forward, records near events, and keeps away from all other steps."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from spikeprune.core.errors import InvalidValue, MissingEvidence, UserError
from spikeprune.methods.base import Method
from spikeprune.pruner.adapter import Adapter
from spikeprune.pruner.costs import InputRates
from spikeprune.pruner.probe import Probe
from spikeprune.pruner.trace import Graph, Pairing, Tracer, pair, trace, undisturbed

Reduce = Callable[[Tensor], Tensor]


class Recorder:
    """Hooks of the Pruner on the model, if any.

    Attributes:
        graph, pairs: what the first forward showed; None before it.
    """

    def __init__(
        self,
        outer: nn.Module,
        model: nn.Module,
        adapter: Adapter | None,
        method: Method,
        parameters: Mapping[str, nn.Parameter],
    ) -> None:
        """`outer` is the user's object, perhaps compiled or wrapped; `model` the module inside."""
        self._outer = outer
        self._model = model
        self._adapter = adapter
        self._method = method
        self._parameters = parameters
        self.graph: Graph | None = None
        self.pairs: dict[str, Pairing] | None = None
        self._error: UserError | None = None
        self._wanted = (False, False)
        self._tracer: Tracer | None = None
        self._probe: Probe | None = None
        self._meter: InputRates | None = None
        self._carried: dict[str, tuple[Tensor | None, float]] = {}
        self._calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self._entry: Any = None
        self._compiled: Any = None

    def feeds_neuron(self, name: str) -> bool:
        """Whether the weight is known to feed a spiking neuron."""
        return self.pairs is not None and name in self.pairs and self.pairs[name].neuron is not None

    # ---- during training ------------------------------------------------------------------------------------------

    def prepare(self, *, membrane: bool, rates: bool) -> None:
        """Sets the hooks for the coming forward: to trace it if none was seen yet, to record what is asked for."""
        self._wanted = (membrane, rates)
        if rates and self._meter is None:
            self._meter = InputRates(self._model)
        if self.graph is None:
            if self._tracer is None:
                self._tracer = Tracer(self._model, self._adapter, self._traced)
                self._watch()
        elif membrane and self._probe is None and self._error is None:
            self._probe = self._new_probe(needs_grad=True)
            self._probe.install()
            self._watch()

    def _traced(self, graph: Graph) -> None:
        self._tracer = None
        try:
            self._learn(graph)
        except UserError as error:
            self._error = error  # raised at the event, from the user's own step(), not from inside a forward
            self._unwatch()
            return
        calls = self._calls
        self._unwatch()
        self.prepare(membrane=self._wanted[0], rates=self._wanted[1])
        if self._probe is not None:  # the traced call was the first of those to be recorded: see it once more
            self._replay(calls)
            self._calls = calls

    def _learn(self, graph: Graph) -> None:
        self.graph = graph
        self.pairs = pair(graph)
        if {"membrane", "spikes"} & self._method.needs and not any(map(self.feeds_neuron, self._parameters)):
            raise InvalidValue(
                "no prunable layer feeds a spiking neuron, so criticality has nothing to rank; "
                "pruner.table() shows what was traced; widen include=, or use 'magnitude'"
            )

    def _new_probe(self, *, needs_grad: bool) -> Probe:
        assert self._adapter is not None
        assert self.pairs is not None
        pairs = {n: p for n, p in self.pairs.items() if n in self._parameters}
        probe = Probe(self._model, self._adapter, pairs, self._method, needs_grad=needs_grad)
        for name, (total, count) in self._carried.items():
            if total is not None and name in probe.statistics:
                probe.statistics[name].add(total.to(self._parameters[name].device), count)
        self._carried = {}
        return probe

    def _watch(self) -> None:
        """Remembers the model's inputs, and lets a compiled model run eagerly so that hooks fire."""
        if self._entry is None:
            self._calls = []
            self._entry = self._model.register_forward_pre_hook(self._called, with_kwargs=True)
        if hasattr(self._outer, "_orig_mod") and self._compiled is None:
            self._compiled = self._outer.forward
            self._outer.forward = self._model.__call__

    def _called(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.is_grad_enabled():
            self._calls.append((args, kwargs))

    def _unwatch(self) -> None:
        if self._entry is not None:
            self._entry.remove()
            self._entry = None
        if self._compiled is not None:
            self._outer.forward = self._compiled
            self._compiled = None
        self._calls = []

    def _replay(self, calls: list[tuple[tuple[Any, ...], dict[str, Any]]]) -> None:
        """Runs remembered forwards again for the Probe; nothing of the model is changed by it."""
        assert self._probe is not None
        if self._entry is not None:
            self._entry.remove()
        needs_grad, self._probe.needs_grad = self._probe.needs_grad, False
        self._probe.install()
        with torch.no_grad(), undisturbed(self._model, self._adapter):
            for args, kwargs in calls:
                self._model(*args, **kwargs)
        self._probe.needs_grad = needs_grad
        if self._entry is not None:
            self._entry = self._model.register_forward_pre_hook(self._called, with_kwargs=True)

    # ---- outside of training --------------------------------------------------------------------------------------

    def observe(
        self, data: Iterable[Any], loss: Any, *, membrane: bool, rates: bool, graph: bool
    ) -> dict[str, Tensor]:  # fmt: skip
        """Shows the model batches, (input, target) or inputs. Nothing of the model changes.

        Returns: parameter name -> gradient of the sum of `loss(output, target)` over the batches; empty without loss.
        """
        kept = {p: p.grad for p in self._model.parameters()}
        for p in kept:
            p.grad = None
        try:
            for batch in data:
                x, target = batch if isinstance(batch, (tuple, list)) else (batch, None)
                if self.graph is None and (graph or membrane):
                    self._learn(trace(self._model, x, adapter=self._adapter))
                if membrane and self._probe is None:
                    self._probe = self._new_probe(needs_grad=False)
                    self._probe.install()
                if rates and self._meter is None:
                    self._meter = InputRates(self._model)
                with undisturbed(self._model, self._adapter), torch.set_grad_enabled(loss is not None):
                    output = self._model(x)
                    if loss is not None:
                        loss(output, target).backward()
                self._calls.append(((x,), {}))
            return {n: p.grad for n, p in self._parameters.items() if p.grad is not None}
        finally:
            if self._probe is not None:
                self._probe.remove()
            for p, grad in kept.items():
                p.grad = grad

    # ---- at an event ----------------------------------------------------------------------------------------------

    def statistics(self, reduce: Reduce) -> dict[str, Tensor]:
        """Weight name -> what was recorded, summed over ranks by `reduce`.

        Raises: MissingEvidence if no forward was seen; the error that tracing met, if it did.
        """
        if self._error is not None:
            raise self._error
        if self._probe is None:
            raise MissingEvidence(
                "the model was not called between two optimizer steps, so no membrane potential was seen; "
                "call the very object that was given to the Pruner"
            )
        return self._probe.results(reduce)

    def measure_again(self) -> None:
        """Forgets what was recorded and runs the same forwards with the weights as they are now."""
        calls = list(self._calls)
        self.forget()
        self._probe = self._new_probe(needs_grad=False)
        self._replay(calls)

    def rates(self, reduce: Reduce) -> dict[str, Tensor]:
        """Parameter name -> share of non-zero inputs per input channel, as far as measured."""
        if self._meter is None:
            return {}
        self._meter.remove()
        meter, self._meter = self._meter, None
        return meter.rates(reduce)

    def forget(self) -> None:
        """After an event: takes the recording hooks off and drops what they saw."""
        if self._probe is not None:
            self._probe.remove()
            self._probe = None
        self._unwatch()

    # ---- the end, and saving --------------------------------------------------------------------------------------

    def remove(self) -> None:
        """Takes every hook off the model."""
        if self._tracer is not None:
            self._tracer.remove()
            self._tracer = None
        if self._meter is not None:
            self._meter.remove()
            self._meter = None
        self.forget()

    def totals(self) -> dict[str, tuple[Tensor | None, float]]:
        """What has been recorded for the coming event, for saving."""
        return self._carried if self._probe is None else self._probe.totals()

    def load_totals(self, totals: dict[str, tuple[Tensor | None, float]]) -> None:
        """Goes on from saved totals."""
        self.forget()
        self._carried = totals
