"""The Observer: it traces the first forward, records near mask updates, and keeps away from all other steps."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from spikeprune.core.errors import InvalidValue, MissingEvidence, UserError, first_line
from spikeprune.methods.base import Method
from spikeprune.model.adapter import Adapter
from spikeprune.model.arguments import Arguments, on_call
from spikeprune.model.curvature import curvature
from spikeprune.model.discover import NOT_FOUND
from spikeprune.model.examples import undisturbed
from spikeprune.model.flow import flow, ones_of, refuse_flow
from spikeprune.model.glance import Glance, refuse_computed
from spikeprune.model.input_rates import InputRates
from spikeprune.model.pairing import Pairing, pair
from spikeprune.model.probe import Probe
from spikeprune.model.trace import Graph, trace

_log = logging.getLogger("spikeprune")
Reduce = Callable[[Tensor], Tensor]


_NOT_CALLED = (
    "the model was not called between two optimizer steps, so no membrane potential was seen; "
    "call the very object that was given to the Pruner, or pruner.trace(example) once before"
)


class Observer:
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
        learned: Callable[[Graph], None] | None = None,
    ) -> None:
        """`outer` is the user's object, perhaps compiled or wrapped, and `model` the module inside it.

        `learned` is called with the trace.
        """
        self._outer = outer
        self._model = model
        self._adapter = adapter
        self._method = method
        self._parameters = parameters
        self.learned = learned
        self.graph: Graph | None = None
        self.pairs: dict[str, Pairing] | None = None
        self._error: UserError | None = None
        self._recording = False
        self._probe: Probe | None = None
        self._meter: InputRates | None = None
        self._carried: dict[str, tuple[Tensor | None, float]] = {}
        self._calls: list[tuple[Arguments, int]] = []  # of this step: inputs, sequences before
        self._entry: Any = None
        self._compiled: Any = None
        self._glance: Glance | None = None
        self._ones: Arguments | None = None  # the model's input as ones, for a method that needs the flow

    def feeds_neuron(self, name: str) -> bool:
        """Whether the weight is known to feed a spiking neuron."""
        return self.pairs is not None and name in self.pairs and self.pairs[name].neuron is not None

    # ---- during training ------------------------------------------------------------------------------------------

    def glance(self) -> None:
        """Watches the next forward for weights that are used in an unknown way, for methods that need no trace.

        Raises: the error of an earlier watched forward, so that it reaches the user in `step()`.
        """
        self.check()
        if self.graph is None and self._glance is None and not hasattr(self._outer, "_orig_mod"):
            self._glance = Glance(self._model, self._adapter, self._parameters, self._refuse)

    def _refuse(self, error: UserError) -> None:
        self._error = error

    def prepare(self, *, membrane: bool, rates: bool) -> None:
        """Sets the hooks for the coming forward: to trace it if none was seen yet, to record what is asked for.

        Raises: the error that the traced forward met. It is raised here, in the user's call of step(), and not inside
            the forward.
        """
        self.check()
        self._recording = membrane
        self._calls = []
        if rates and self._meter is None:
            self._meter = InputRates(self._model)
        if self.graph is None or membrane:
            self._watch()
        if self.graph is not None:
            self._record()

    def _record(self) -> None:
        if self._recording and self._probe is None:
            self._probe = self._new_probe(needs_grad=True)
            self._probe.install()
            self._carried = {}
        elif not self._recording:
            self._unwatch()

    def _learn(self, graph: Graph, given: Arguments) -> None:
        refuse_computed(graph, self._parameters)
        if "flow" in self._method.needs:
            refuse_flow(graph, self._parameters)
            self._ones = ones_of(given)
        self.pairs = pair(graph, self._parameters)
        self.graph = graph
        if {"membrane", "spikes"} & self._method.needs:
            if not any(node.kind == "neuron" for node in graph.nodes):
                raise InvalidValue(NOT_FOUND)
            if not any(map(self.feeds_neuron, self._parameters)):
                raise InvalidValue(
                    "no prunable layer feeds a spiking neuron, so criticality has nothing to rank; "
                    "pruner.table() shows what was traced; widen include=, or use 'magnitude'"
                )
            self._new_probe(needs_grad=True)
            for name, function in self._unread(graph).items():
                _log.warning(
                    "spikeprune: %r goes through the function %r, so no neuron is known that it feeds, and it is never "
                    "regrown; write it as a product such as torch.nn.functional.linear",
                    name,
                    function,
                )
        if self.learned is not None:
            self.learned(graph)

    def _unread(self, graph: Graph) -> dict[str, str]:
        """Weights that are pruned here and used by no product that is known -> the function that uses them."""
        used = {node.weight for node in graph.nodes}
        return {n: f for n, f in graph.unread.items() if n in self._parameters and n not in used}

    def _new_probe(self, *, needs_grad: bool) -> Probe:
        assert self._adapter is not None
        assert self.pairs is not None
        probe = Probe(self._model, self._adapter, self.pairs, self._method, needs_grad=needs_grad, graph=self.graph)
        probe.add(self._carried)
        return probe

    def _watch(self) -> None:
        """Sees the model's inputs, and lets a compiled model run eagerly so that hooks fire."""
        if self._entry is None:
            self._entry = on_call(self._model, self._called)
        if hasattr(self._outer, "_orig_mod") and self._compiled is None:
            self._compiled = self._outer.forward
            self._outer.forward = self._model.__call__

    def _called(self, _: nn.Module, given: Arguments) -> None:
        if self.graph is None:
            # A forward of our own comes before the user's first one, whose hooks can then already record.
            self._unwatch()
            try:
                self._learn(trace(self._model, *given.positional, adapter=self._adapter, keywords=given.named), given)
            except UserError as error:
                self._error = error
                return
            self._watch()
            self._record()
            if self._probe is not None:
                self._probe.enter(given)
        if self._probe is not None and torch.is_grad_enabled():
            self._calls.append((given, self._probe.begun))

    def _unwatch(self) -> None:
        if self._entry is not None:
            self._entry.remove()
            self._entry = None
        if self._compiled is not None:
            self._outer.forward = self._compiled
            self._compiled = None
        self._calls = []

    def check(self) -> None:
        """Raises: the error of the traced forward, if it failed."""
        if self._error is not None:
            raise self._error

    # ---- outside of training --------------------------------------------------------------------------------------

    def trace(self, example: Any) -> None:
        """Learns from one forward of its own, unless one was seen before.

        Raises: InvalidValue if the model cannot run on the example.
        """
        if self.graph is not None:
            return
        watched = self._entry is not None
        self._unwatch()  # our own forward must not be taken for the user's first one
        given = Arguments(example if isinstance(example, tuple) else (example,))
        try:
            graph = trace(self._model, *given.positional, adapter=self._adapter)
        except UserError:
            raise
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            shape = list(example.shape) if isinstance(example, Tensor) else type(example).__name__
            said = first_line(error, 120)
            raise InvalidValue(
                f"the model cannot run on an example of shape {shape}: {said}; give one batch as in training"
            ) from error
        finally:
            if watched:
                self._watch()
        self._learn(graph, given)
        if watched:
            self._record()

    def observe(
        self, data: Iterable[Any], loss: Any, *, membrane: bool, rates: bool, graph: bool
    ) -> dict[str, Tensor]:  # fmt: skip
        """Shows the model batches, (input, target) or inputs. Nothing of the model changes.

        Returns: parameter name -> gradient of the sum of `loss(output, target)` over the batches; empty without loss.
            Of every parameter, those that are not pruned too.
        """
        kept = {p: p.grad for p in self._model.parameters()}
        for p in kept:
            p.grad = None
        empty = True
        if not (graph or membrane):
            self.glance()
        try:
            for batch in data:
                empty = False
                x, target = batch if isinstance(batch, (tuple, list)) else (batch, None)
                if graph or membrane:
                    self.trace(x)
                if membrane and self._probe is None:
                    self._probe = self._new_probe(needs_grad=False)
                    self._probe.install()
                if rates and self._meter is None:
                    self._meter = InputRates(self._model)
                if self._probe is not None:
                    self._calls.append((Arguments((x,)), self._probe.begun))
                with undisturbed(self._model, self._adapter), torch.set_grad_enabled(loss is not None):
                    output = self._model(x)
                    if loss is not None:
                        loss(output, target).backward()
            self.check()
            if empty:
                raise InvalidValue("data holds no batch; pass an iterable of inputs or (input, target) pairs")
            return {n: p.grad for n, p in self._model.named_parameters() if p.grad is not None}
        finally:
            if self._probe is not None:
                self._probe.remove()
            for p, grad in kept.items():
                p.grad = grad

    def curvature(
        self, batches: Sequence[Any], loss: Any, masks: Mapping[str, Tensor], reduce: Reduce
    ) -> dict[str, Tensor]:  # fmt: skip
        """Weight name -> the loss's Hessian times its gradient, over (input, target) pairs: `model/curvature.py`."""
        return curvature(self._model, self._adapter, masks, batches, loss, self._method.softening(), reduce)

    # ---- at a mask update --------------------------------------------------------------------------------------

    def statistics(self, reduce: Reduce) -> dict[str, Tensor]:
        """Weight name -> what was recorded, summed over ranks by `reduce`.

        Raises: MissingEvidence if no forward was seen. Call `check` before, which raises what tracing met.
        """
        if self._probe is None:
            raise MissingEvidence(_NOT_CALLED)
        found = self._probe.results(reduce)
        if self._method.observation().whole:
            self._probe.share(float(reduce(torch.ones((), device=next(self._model.parameters()).device))))
        return found

    def measure_again(self) -> None:
        """Forgets what was recorded and runs the forwards of this step once more, with the weights as they are now.

        Raises: MissingEvidence if no forward was seen; the error that tracing met, if it did.
        """
        if self._probe is None or self._adapter is None or not self._calls:
            raise self._error or MissingEvidence(_NOT_CALLED)
        calls, later = self._calls, [begun for _, begun in self._calls[1:]] + [self._probe.begun]
        self.forget()
        self._probe = self._new_probe(needs_grad=False)
        self._probe.install()
        with torch.no_grad(), undisturbed(self._model, self._adapter):
            for (given, begun), after in zip(calls, later, strict=True):
                if after > begun:  # a new sequence, not the next time step of the last one
                    self._adapter.reset(self._model)
                self._model(*given.positional, **given.named)

    def flow(self, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weight name -> the flow through each of its entries, dead ones too (see `model/flow.py`).

        Raises: MissingEvidence if no forward was seen; InvalidValue if nothing flows.
        """
        if self._ones is None:
            raise self._error or MissingEvidence(_NOT_CALLED)
        return flow(self._model, self._adapter, masks, self._ones)

    def rates(self, reduce: Reduce) -> dict[str, Tensor]:
        """Parameter name -> share of non-zero inputs per input channel, as far as measured."""
        if self._meter is None:
            return {}
        self._meter.remove()
        meter, self._meter = self._meter, None
        return meter.rates(reduce)

    def forget(self) -> None:
        """After a mask update: takes the recording hooks off and drops what they saw, unless it goes on."""
        if self._probe is not None:
            if self._method.observation().whole:
                self._carried = self._probe.totals()
            self._probe.remove()
            self._probe = None
        self._unwatch()

    # ---- the end, and saving --------------------------------------------------------------------------------------

    def remove(self) -> None:
        """Takes every hook off the model."""
        self._carried = self.totals()
        if self._glance is not None:
            self._glance.remove()
            self._glance = None
        if self._meter is not None:
            self._meter.remove()
            self._meter = None
        self.forget()

    def totals(self) -> dict[str, tuple[Tensor | None, float]]:
        """The recorded statistics of the coming mask update, for checkpoints."""
        return self._carried if self._probe is None else self._probe.totals()

    def load_totals(self, totals: dict[str, tuple[Tensor | None, float]]) -> None:
        """Goes on from saved totals."""
        self.forget()
        self._carried = totals
