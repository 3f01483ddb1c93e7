"""The Pruner: the one stateful object, between a model and its optimizer; the training loop stays the user's."""

import fnmatch
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from spikeprune.core import allocate as allocation
from spikeprune.core.errors import InvalidValue, MissingEvidence, UserError, unknown
from spikeprune.core.evidence import Evidence
from spikeprune.core.mask import Masks, pack, unpack
from spikeprune.core.schedule import Constant, Event, OneShot, Schedule
from spikeprune.core.select import keep_quota, keep_top
from spikeprune.methods.base import Method, check_choice, regrow_schedule
from spikeprune.methods.dense import Dense
from spikeprune.methods.registry import make_method, name_of
from spikeprune.pruner.adapter import Adapter, adapter_for, find_adapter
from spikeprune.pruner.costs import BUDGETS, InputRates, weight_costs
from spikeprune.pruner.pattern import nm_pattern
from spikeprune.pruner.probe import Probe
from spikeprune.pruner.table import Row, Table
from spikeprune.pruner.trace import Graph, Pairing, Tracer, pair, trace, undisturbed
from spikeprune.pruner.update import Outcome, Target, authors_update, prefer_group, prune_and_regrow

_log = logging.getLogger("spikeprune")

# Given weight, gradient and state of exactly 0 these leave all of them at exactly 0, so that masking the gradient
# before the step is enough; for any other optimizer the state is masked after every step as well
# (test: tests/unit/test_pruner.py::test_dead_weights_and_their_state_stay_zero).
_KEEPS_ZERO = ("SGD", "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Adagrad", "Adadelta", "RMSprop")
_STATE_VERSION = 1


class Pruner:
    """Prunes and regrows a model during the user's own training.

        pruner = Pruner(model, Criticality(regrow=0.2), Cubic(to=0.95, begin=0, end=40_000, every=2_000))
        pruner.attach(optimizer)

    Step k is the k-th completed optimizer step. An event of the schedule happens inside its `optimizer.step()`, after
    the update, with evidence from that step's own forward. After every step pruned weights and their optimizer state
    are exactly 0. Between events the only work is that mask upkeep.

    Args:
        model: the user's. Its class, state_dict keys and forward stay as they are.
        method: a method object or its name.
        schedule: when the events are and what sparsity each one has; steps count optimizer steps.
        allocate: where: "global" ranks all layers together; "uniform", "erk", "lamp" give every layer a quota.
        pattern: "weight", or "n:m" (such as "2:4") for at most n alive of m neighbouring inputs.
        budget: what the sparsity is a share of: "weights"; "parameters", "macs" or "synops" rank globally under a
            budget of that.
        include, exclude: names or patterns (`*`) of parameters or modules; default: every Conv and Linear weight.
        floor: the least that every layer keeps: a count, or a share of the layer if below 1.
        seed: for methods that draw.
        start: "dense", or "random": begin with a random mask at the schedule's first sparsity, so that with a
            `Constant` schedule training is never dense.
    Raises: InvalidValue or UnknownName (both ValueError or LookupError) for a bad setting, when the object is made.
    """

    def __init__(
        self,
        model: nn.Module,
        method: Method | str,
        schedule: Schedule,
        *,
        allocate: str = "global",
        pattern: str = "weight",
        budget: str = "weights",
        include: Sequence[str] | str | None = None,
        exclude: Sequence[str] | str | None = None,
        floor: float = 1,
        seed: int = 0,
        start: str = "dense",
    ) -> None:
        self.method = make_method(method) if isinstance(method, str) else method
        if not isinstance(self.method, Method):
            raise InvalidValue(f"method must be a method object or a name such as 'criticality', got {method!r}")
        if not isinstance(schedule, Schedule):
            raise InvalidValue(f"schedule must be a schedule such as Cubic(to=0.9, ...), got {schedule!r}")
        self.schedule = schedule
        self.allocate = allocation.check(allocate)
        if budget not in BUDGETS:
            raise unknown("budget", budget, BUDGETS)
        self.budget = budget
        if budget != "weights" and allocate != "global":
            raise InvalidValue(f"budget={budget!r} ranks all layers together; use allocate='global', not {allocate!r}")
        check_choice("start", start, ("dense", "random"))
        self.start = start
        self.seed = seed
        self._outer = model
        self._model = eager(model)
        self._nm = nm_pattern(pattern)
        self.pattern = pattern
        self._parameters = prunable(self._model, include, exclude, self._nm)
        self._floor = allocation.floors(self._parameters, floor)
        self._total = sum(p.numel() for p in self._parameters.values())
        self._adapter = self._find_adapter()
        self._share = regrow_schedule(self.method)
        self._events = self._plan()
        self._masks = {n: torch.ones_like(p, dtype=torch.bool) for n, p in self._parameters.items()}
        self._float_masks: dict[torch.dtype, list[Tensor]] = {}
        self._dense = True  # no weight is dead yet: upkeep has nothing to do
        self._step = 0
        self._regrown: dict[str, Tensor] | None = None  # of the last event: for survival and grace
        self.rounds: list[dict[str, Any]] = []
        self.seconds = 0.0
        self._warned = False
        self._graph: Graph | None = None
        self._pairs: dict[str, Pairing] | None = None
        self._pair_error: UserError | None = None
        self._tracer: Tracer | None = None
        self._probe: Probe | None = None
        self._saved_totals: dict[str, tuple[Tensor | None, float]] = {}
        self._calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self._grads: dict[str, Tensor] = {}
        self._meter: InputRates | None = None
        self._rates: dict[str, Tensor] = {}
        self._optimizer: torch.optim.Optimizer | None = None
        self._handles: list[Any] = []
        self._entry: Any = None
        self._compiled_forward: Any = None
        if start == "random":
            self._start_random()

    # ---- what it is -------------------------------------------------------------------------------------------

    @property
    def masks(self) -> Masks:
        """Parameter name -> bool tensor of its shape, True = alive. A snapshot; works after `finish` too."""
        return Masks(self._masks)

    @property
    def sparsity(self) -> float:
        """Share of the prunable weights that is dead."""
        return 1.0 - self.density

    @property
    def density(self) -> float:
        """Share of the prunable weights that is alive."""
        return self.alive / self._total

    @property
    def alive(self) -> int:
        """Number of prunable weights that are alive."""
        return sum(int(torch.count_nonzero(mask)) for mask in self._masks.values())

    @property
    def prunable(self) -> int:
        """Number of prunable weights."""
        return self._total

    @property
    def steps_done(self) -> int:
        """Completed optimizer steps."""
        return self._step

    def preview(self) -> tuple[Event, ...]:
        """Every event: its step, target sparsity and the exact number of weights it keeps."""
        return self._events

    def quota(self, sparsity: float) -> dict[str, int]:
        """How many weights each layer would keep at a sparsity, by the scores of the present weights."""
        keep = allocation.kept(self._total, sparsity)
        target = self._target(Event(0, 0, sparsity, keep))
        weights = self._weights()
        scores = {n: w.abs() for n, w in weights.items()}
        alive = prune_and_regrow(scores, {}, self._masks, weights, target, share=0.0).alive
        return {n: int(torch.count_nonzero(m)) for n, m in alive.items()}

    def table(self) -> Table:
        """One row a layer: weights, alive, density, the neuron it feeds and whether it is regrown by the method."""
        pairs = self._pairs or {}
        rows = [
            Row(
                name,
                p.numel(),
                int(torch.count_nonzero(self._masks[name])),
                pairs[name].neuron if name in pairs else None,
                traced=self._pairs is not None,
            )
            for name, p in self._parameters.items()
        ]
        return Table(rows)

    def __repr__(self) -> str:
        return (
            f"Pruner({name_of(self.method)}, {self.schedule!r}, step {self._step}, "
            f"{self.alive} of {self._total} weights alive, sparsity {self.sparsity:.4f})"
        )

    # ---- attaching and stepping ---------------------------------------------------------------------------------

    def attach(self, optimizer: torch.optim.Optimizer) -> "Pruner":
        """Hooks into `optimizer.step()`. Attaching again, or to a new optimizer, replaces the old hooks.

        Raises: InvalidValue if the optimizer does not hold a prunable parameter.
        """
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        missing = [n for n, p in self._parameters.items() if id(p) not in held]
        if missing:
            raise InvalidValue(
                f"the optimizer does not hold {missing[0]!r} ({len(missing)} of {len(self._parameters)} prunable "
                "parameters); build it from the parameters of the model given to the Pruner"
            )
        self._remove_hooks()
        self._optimizer = optimizer
        self._handles = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]
        self._prepare()
        return self

    def step(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        """What `attach` does after every optimizer step, for loops whose optimizer has no step hooks.

        Call it right after the update. Pass the optimizer so that the state of dead weights is cleared too; call
        `mask_grads` before the update to keep gradients of dead weights out of it.
        """
        if optimizer is not None:
            self._optimizer = optimizer
        self._advance(closure=True)

    def mask_grads(self) -> None:
        """Zeroes the gradients of dead weights; for users who clip gradients, to be called before clipping."""
        if self._dense or not self._cold:
            return
        pairs = [(p.grad, n) for n, p in self._parameters.items() if p.grad is not None]
        if pairs:
            masks = self._as_floats(pairs[0][0].dtype)
            index = {n: i for i, n in enumerate(self._parameters)}
            torch._foreach_mul_([g for g, _ in pairs], [masks[index[n]] for _, n in pairs])

    def finish(self) -> None:
        """Takes every hook off. The model is an ordinary module whose pruned weights are exactly 0."""
        self._remove_hooks()
        self._mask_weights()
        self._float_masks.clear()

    @property
    def _cold(self) -> bool:
        """Whether regrown weights start with clean optimizer state, so that dead gradients are masked."""
        return getattr(self.method, "momentum", "clean") == "clean" and not self._authors

    @property
    def _authors(self) -> bool:
        return getattr(self.method, "rule", "exact") == "authors"

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        started = time.perf_counter()
        if "grads" in self.method.needs and self._step + 1 in self._by_step:
            self._grads = {n: p.grad.clone() for n, p in self._parameters.items() if p.grad is not None}
        self.mask_grads()
        self.seconds += time.perf_counter() - started

    def _after_step(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found = getattr(optimizer, "found_inf", None)
        if isinstance(found, Tensor) and bool(found > 0):
            return  # a fused optimizer skipped this step inside its kernel (GradScaler saw inf)
        started = time.perf_counter()
        closure = bool(args) or kwargs.get("closure") is not None  # a closure computes gradients after our masking
        self._advance(closure=closure)
        self.seconds += time.perf_counter() - started

    def _advance(self, *, closure: bool) -> None:
        self._step += 1
        event = self._by_step.get(self._step)
        if event is not None:
            self._run_event(event)
        elif not self._dense:
            self._mask_weights()
            if self._cold and (closure or type(self._optimizer).__name__ not in _KEEPS_ZERO):
                self._mask_state(self._masks)
        self._prepare()

    def observe(self, data: Iterable[Any] | None, loss: Any = None) -> None:
        """Shows the model batches outside of any training loop; `sp.prune` uses it. Nothing of the model changes.

        Args:
            data: inputs or (input, target) pairs; None if the method needs no evidence.
            loss: loss(output, target), for methods that need gradients.
        Raises: MissingEvidence if the method needs what is not given.
        """
        measures = self._window > 0 or self.budget in ("macs", "synops")
        differentiates = "grads" in self.method.needs and self._share.at(0.0) > 0
        if data is None:
            if measures or differentiates:
                raise MissingEvidence(f"{name_of(self.method)} must see batches of data; pass data=")
            return
        if differentiates and loss is None:
            raise MissingEvidence(f"{name_of(self.method)} needs gradients; pass loss=, for example F.cross_entropy")
        kept = {n: p.grad for n, p in self._model.named_parameters()}
        for batch in data:
            x, target = batch if isinstance(batch, (tuple, list)) else (batch, None)
            if measures and self._graph is None:
                self._graph = trace(self._model, x, adapter=self._adapter)
                self._pairs = pair(self._graph)
                self._check_pairs()
            if self._window and self._probe is None:
                self._probe = self._new_probe(needs_grad=False)
                self._probe.install()
            if self.budget == "synops" and self._meter is None:
                self._meter = InputRates(self._model)
            with undisturbed(self._model, self._adapter), torch.set_grad_enabled(differentiates):
                output = self._model(x)
                if differentiates:
                    loss(output, target).backward()
            self._calls.append(((x,), {}))
        if differentiates:
            self._grads = {n: p.grad.clone() for n, p in self._parameters.items() if p.grad is not None}
            for name, p in self._model.named_parameters():
                p.grad = kept[name]
        if self._probe is not None:
            self._probe.remove()

    # ---- one event ----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _run_event(self, event: Event) -> None:
        regrowing = self.method.regrows and self._share.share(event.number, len(self._events), event.step) > 0
        measured_after = regrowing and getattr(self.method, "measure", "before") == "after"
        evidence = self._evidence(event, membrane=regrowing and not measured_after)
        share = self._share.share(event.number, len(self._events), event.step) if regrowing else 0.0
        if self._meter is not None:
            self._rates, self._meter = self._meter_rates(), None
        scores = {n: s.to(self._parameters[n].device) for n, s in self.method.score(evidence).items()}
        if measured_after:
            self._mask_and_replay(event, scores, share)
            evidence = self._evidence(event, membrane=True)
        regrow_scores = dict(self.method.regrow_score(evidence)) if share > 0 else {}
        outcome = self._select(event, scores, regrow_scores, share)
        self._record(event, outcome)
        self._apply(outcome)
        self._grads.clear()
        self._drop_probe()

    def _meter_rates(self) -> dict[str, Tensor]:
        assert self._meter is not None
        self._meter.remove()
        ranks = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        return {n: _sum_over_ranks(r) / ranks for n, r in self._meter.rates().items()}

    def _select(self, event: Event, scores: Any, regrow_scores: Any, share: float) -> Outcome:
        weights = self._weights()
        if self._authors:
            return authors_update(weights, regrow_scores, int(self._total * (1 - event.target)), share)
        return prune_and_regrow(
            scores,
            regrow_scores,
            self._masks,
            weights,
            self._target(event),
            share=share,
            candidates=getattr(self.method, "candidates", "all"),
            protected=self._regrown if getattr(self.method, "grace", False) else None,
        )

    def _target(self, event: Event) -> Target:
        if self.budget == "weights":
            exact = self._nm is not None and event.target >= 1 - self._nm[0] / self._nm[1] - 1e-9
            return Target(event.kept, self.allocate, self._floor, pattern=self._nm, exact=exact)
        cost, fixed = weight_costs(self.budget, self._model, self._parameters, self._graph, self._rates)
        whole = sum(float(torch.as_tensor(cost[n]).expand(p.shape).sum()) for n, p in self._parameters.items())
        allowed = (whole + fixed) * (1 - event.target) - fixed
        if allowed <= 0:
            raise InvalidValue(
                f"a sparsity of {event.target:g} in {self.budget} cannot be met: what is not prunable alone needs more"
            )
        return Target(event.kept, self.allocate, self._floor, cost=cost, budget=allowed)

    def _apply(self, outcome: Outcome) -> None:
        """Clears what did not survive the cut, so that regrown weights start at 0 with clean state; sets the masks."""
        self._masks = outcome.alive
        self._regrown = outcome.regrown
        self._dense = all(bool(m.all()) for m in outcome.alive.values())
        self._float_masks.clear()
        survivors = list(outcome.survivors.values())
        torch._foreach_mul_(
            [p.data for p in self._parameters.values()],
            [m.to(p.dtype) for m, p in zip(survivors, self._parameters.values(), strict=True)],
        )
        if self._cold:
            self._mask_state(outcome.survivors)

    def _record(self, event: Event, outcome: Outcome) -> None:
        """record.json's `rounds` entry; `survived` of the round before is known only now."""
        if self.rounds and self._regrown is not None and self.rounds[-1]["regrown"]:
            survived = _overlap(self._regrown, outcome.reference)
            self.rounds[-1]["survived"] = survived
            if survived < 0.02 * self.rounds[-1]["regrown"] and not self._warned:
                self._warned = True
                _log.warning(
                    "of %d weights regrown at step %d only %d outlived the next cut: the score cannot matter at this "
                    "rate; space events further apart, raise the learning rate, or pass grace=True",
                    self.rounds[-1]["regrown"],
                    self.rounds[-1]["step"],
                    survived,
                )
        elif self.rounds:
            self.rounds[-1]["survived"] = 0
        newly_cut = {n: self._masks[n] & ~outcome.reference[n] for n in self._masks}
        self.rounds.append(
            {
                "step": event.step,
                "target": event.target,
                "kept": sum(int(torch.count_nonzero(m)) for m in outcome.alive.values()),
                "regrown": sum(int(torch.count_nonzero(m)) for m in outcome.regrown.values()),
                "rescued": _overlap(newly_cut, outcome.alive),
                "survived": None,
            }
        )

    def _evidence(self, event: Event, *, membrane: bool) -> Evidence:
        statistics = None
        if membrane and {"membrane", "spikes"} & self.method.needs:
            if self._pair_error is not None:
                raise self._pair_error
            if self._probe is None:
                raise MissingEvidence(
                    "the model was never called between two optimizer steps, so no membrane potential was seen; "
                    "call the very object given to the Pruner, or use pruner.step() after a forward through it"
                )
            statistics = self._probe.results(_sum_over_ranks)
        grads = {n: _sum_over_ranks(g) for n, g in self._grads.items()} if "grads" in self.method.needs else None
        return Evidence(
            weights=self._weights(),
            masks=dict(self._masks),
            generator=torch.Generator().manual_seed(self.seed * 1_000_003 + event.number),
            number=event.number,
            count=len(self._events),
            grads=grads,
            statistics=statistics,
            state=self._state() if "state" in self.method.needs else None,
        )

    def _mask_and_replay(self, event: Event, scores: Any, share: float) -> None:
        """For measure="after": the event's cut alone, then the step's own forwards once more, recorded."""
        everywhere = {n: torch.zeros_like(s) for n, s in scores.items() if self._feeds_neuron(n)}
        cut = self._select(event, scores, everywhere, share).survivors
        before = {n: p.data.clone() for n, p in self._parameters.items()}
        for name, p in self._parameters.items():
            p.data.mul_(cut[name].to(p.dtype))
        self._drop_probe(keep_calls=True)
        self._probe = self._new_probe(needs_grad=False)
        self._replay()
        for name, p in self._parameters.items():
            p.data.copy_(before[name])

    def _feeds_neuron(self, name: str) -> bool:
        return self._pairs is not None and name in self._pairs and self._pairs[name].neuron is not None

    # ---- recording ------------------------------------------------------------------------------------------------

    @property
    def _window(self) -> int:
        """How many steps before an event are recorded, the event's own included; 0 if the method needs no forward."""
        if not {"membrane", "spikes"} & self.method.needs or not self._events:
            return 0
        if isinstance(self._share, Constant) and self._share.to == 0:
            return 0  # nothing is ever regrown, so nothing has to be measured
        return int(getattr(self.method, "batches", 1))

    def _prepare(self) -> None:
        """Sets hooks for the coming step: tracing until it has happened, recording inside the window, else none."""
        upcoming = self._step + 1
        event = next((e for e in self._events if e.step >= upcoming), None)
        if event is None or (self._window == 0 and self.budget in ("weights", "parameters")):
            return
        recording = self._window > 0 and upcoming > event.step - self._window
        if self.budget == "synops" and upcoming == event.step and self._meter is None:
            self._meter = InputRates(self._model)
        if self._graph is None:
            if self._tracer is None:
                self._tracer = Tracer(self._model, self._adapter, self._traced)
                self._watch_calls()
            return
        if recording and self._probe is None and self._pair_error is None:
            self._probe = self._new_probe(needs_grad=True)
            self._probe.install()
            self._watch_calls()

    def _traced(self, graph: Graph) -> None:
        self._tracer = None
        self._graph = graph
        try:
            self._pairs = pair(graph)
            self._check_pairs()
        except UserError as error:
            # Raised at the event, from the user's own call of step(), not from inside somebody's forward.
            self._pair_error = error
            return
        calls = self._calls
        self._stop_watching()
        self._prepare()
        if self._probe is not None:
            # The traced call was already the first of this step's: see it once more, with the Probe.
            self._calls = calls
            self._replay()
            self._watch_calls(keep=True)

    def _check_pairs(self) -> None:
        assert self._pairs is not None
        if self._window and not any(self._feeds_neuron(n) for n in self._parameters):
            raise InvalidValue(
                "no prunable layer feeds a spiking neuron, so criticality has nothing to rank; "
                "pruner.table() shows what was traced; widen include=, or use 'magnitude'"
            )

    def _new_probe(self, *, needs_grad: bool) -> Probe:
        assert self._adapter is not None
        assert self._pairs is not None
        pairs = {n: p for n, p in self._pairs.items() if n in self._parameters}
        probe = Probe(self._model, self._adapter, pairs, self.method, needs_grad=needs_grad)
        for name, (total, count) in self._saved_totals.items():
            if total is not None and name in probe.statistics:
                probe.statistics[name].add(total.to(next(iter(self._parameters.values())).device), count)
        self._saved_totals = {}
        return probe

    def _watch_calls(self, *, keep: bool = False) -> None:
        """Remembers the model's inputs of this step, and lets a compiled model run eagerly so that hooks fire."""
        if not keep:
            self._calls = []
        if self._entry is None:
            self._entry = self._model.register_forward_pre_hook(self._called, with_kwargs=True)
        if self._outer is not self._model and hasattr(self._outer, "_orig_mod") and self._compiled_forward is None:
            self._compiled_forward = self._outer.forward
            self._outer.forward = self._model.__call__

    def _called(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._calls.append((args, kwargs))

    def _stop_watching(self) -> None:
        if self._entry is not None:
            self._entry.remove()
            self._entry = None
        if self._compiled_forward is not None:
            self._outer.forward = self._compiled_forward
            self._compiled_forward = None
        self._calls = []

    def _drop_probe(self, *, keep_calls: bool = False) -> None:
        if self._probe is not None:
            self._probe.remove()
            self._probe = None
        if not keep_calls:
            self._stop_watching()

    def _replay(self) -> None:
        """Runs the remembered forwards again for the Probe; nothing of the model is changed by it."""
        assert self._probe is not None
        calls, self._calls = list(self._calls), []
        if self._entry is not None:
            self._entry.remove()
            self._entry = None
        wanted, self._probe.needs_grad = self._probe.needs_grad, False
        self._probe.install()
        with torch.no_grad(), undisturbed(self._model, self._adapter):
            for args, kwargs in calls:
                self._model(*args, **kwargs)
        self._probe.needs_grad = wanted
        self._calls = calls

    # ---- masks on weights and optimizer state ---------------------------------------------------------------------

    def _weights(self) -> dict[str, Tensor]:
        return {n: p.detach() for n, p in self._parameters.items()}

    def _as_floats(self, dtype: torch.dtype) -> list[Tensor]:
        # A bool mul_ is several times slower than a float one, so masks are kept in the weight's dtype.
        if dtype not in self._float_masks:
            self._float_masks[dtype] = [m.to(dtype) for m in self._masks.values()]
        return self._float_masks[dtype]

    @torch.no_grad()
    def _mask_weights(self) -> None:
        if self._dense:
            return
        weights = [p.data for p in self._parameters.values()]
        if len({w.dtype for w in weights}) == 1:
            torch._foreach_mul_(weights, self._as_floats(weights[0].dtype))
        else:
            for weight, mask in zip(weights, self._masks.values(), strict=True):
                weight.mul_(mask.to(weight.dtype))

    def _state(self) -> dict[str, dict[str, Tensor]]:
        """Parameter name -> the optimizer's state tensors of the parameter's shape."""
        if self._optimizer is None:
            return {}
        state = self._optimizer.state
        return {
            n: {k: v for k, v in state[p].items() if isinstance(v, Tensor) and v.shape == p.shape}
            for n, p in self._parameters.items()
            if p in state
        }

    @torch.no_grad()
    def _mask_state(self, masks: Mapping[str, Tensor]) -> None:
        for name, tensors in self._state().items():
            for tensor in tensors.values():
                tensor.mul_(masks[name].to(tensor.dtype))

    def _start_random(self) -> None:
        """A random mask at the schedule's first sparsity, by the allocation; weights outside it become 0 at once."""
        keep = allocation.kept(self._total, self.schedule.initial)
        generator = torch.Generator().manual_seed(self.seed)
        noise = {
            n: torch.rand(p.shape, generator=generator).to(p.device) for n, p in self._parameters.items()
        }  # fmt: skip
        if self._nm is not None:
            noise = {n: prefer_group(s, self._masks[n], *self._nm) for n, s in noise.items()}
        if self.allocate == "global":
            self._masks = keep_top(noise, keep)
        else:
            self._masks = keep_quota(
                noise, allocation.quotas(self.allocate, self._weights(), keep, self._floor)
            )  # fmt: skip
        self._dense = keep == self._total
        self._mask_weights()

    # ---- saving -----------------------------------------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        """What a saved state must agree with: everything that decides which masks come out."""
        return {
            "method": repr(self.method),
            "schedule": repr(self.schedule),
            "allocate": self.allocate,
            "pattern": self.pattern,
            "budget": self.budget,
            "seed": self.seed,
            "start": self.start,
            "parameters": {n: list(p.shape) for n, p in self._parameters.items()},
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on bit for bit; plain types and tensors, loads under `weights_only=True`."""
        return {
            "version": _STATE_VERSION,
            "settings": self.settings(),
            "step": self._step,
            "masks": {n: pack(m) for n, m in self._masks.items()},
            "regrown": None if self._regrown is None else {n: pack(m) for n, m in self._regrown.items()},
            "rounds": [dict(r) for r in self.rounds],
            "totals": self._saved_totals if self._probe is None else self._probe.totals(),
        }

    def load_state_dict(self, state: Mapping[str, Any], *, strict: bool = True) -> None:
        """Takes up a saved state, before or after `attach`; weights outside the masks become 0.

        Raises: InvalidValue if the state was saved under other settings (unless `strict=False`) or is damaged.
        """
        try:
            version, settings = state["version"], state["settings"]
            if version != _STATE_VERSION:
                raise InvalidValue(f"the pruner state has version {version}, this library reads {_STATE_VERSION}")
            mine = self.settings()
            different = [key for key in mine if mine[key] != settings.get(key)]
            if strict and different:
                raise InvalidValue(
                    f"the saved pruner state was made with another {different[0]}: "
                    f"{str(settings.get(different[0]))[:80]}; make the Pruner alike, or pass strict=False"
                )
            masks = {n: self._unpacked(n, state["masks"][n]) for n in self._parameters}
            regrown = state["regrown"]
            regrown = None if regrown is None else {n: self._unpacked(n, regrown[n]) for n in self._parameters}
            step, rounds, totals = int(state["step"]), [dict(r) for r in state["rounds"]], dict(state["totals"])
        except (KeyError, TypeError, AttributeError) as error:
            raise InvalidValue(f"this is not a pruner state, or it is damaged ({error})") from error
        self._masks, self._regrown, self._step, self.rounds = masks, regrown, step, rounds
        self._saved_totals = totals
        self._dense = all(bool(m.all()) for m in masks.values())
        self._float_masks.clear()
        self._drop_probe()
        self._mask_weights()
        if self._handles:
            self._prepare()

    def _unpacked(self, name: str, bits: Tensor) -> Tensor:
        p = self._parameters[name]
        return unpack(bits.to(p.device), tuple(p.shape))

    # ---- set-up -----------------------------------------------------------------------------------------------------

    def _find_adapter(self) -> Adapter | None:
        if {"membrane", "spikes"} & self.method.needs:
            return adapter_for(self._model)
        return find_adapter(self._model)

    def _plan(self) -> tuple[Event, ...]:
        if isinstance(self.method, Dense):
            steps: tuple[int, ...] = ()
        else:
            steps = self.schedule.steps()
        count = len(steps)
        events: list[Event] = []
        for number, step in enumerate(steps, start=1):
            target = self.schedule.value(number, count)
            if self._nm is not None and target > 1 - self._nm[0] / self._nm[1] + 1e-9:
                raise InvalidValue(
                    f"pattern {self.pattern!r} keeps {self._nm[0]} of {self._nm[1]}, a sparsity of at most "
                    f"{1 - self._nm[0] / self._nm[1]:g}; the schedule asks for {target:g}"
                )
            events.append(Event(number, step, target, allocation.kept(self._total, target)))
        self._by_step = {event.step: event for event in events}
        return tuple(events)

    def _remove_hooks(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if self._tracer is not None:
            self._tracer.remove()
            self._tracer = None
        self._drop_probe()


def eager(model: nn.Module) -> nn.Module:
    """The module itself inside wrappers of torch.compile, DataParallel and DistributedDataParallel."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def prunable(
    model: nn.Module,
    include: Sequence[str] | str | None = None,
    exclude: Sequence[str] | str | None = None,
    pattern: tuple[int, int] | None = None,
) -> dict[str, nn.Parameter]:
    """Name -> parameter of what may be pruned: every Conv and Linear weight that is trained, less what is excluded.

    Shared parameters appear once, under their first name. Layers that an n:m pattern does not divide stay dense.

    Raises: InvalidValue if nothing is left, or a pattern matches nothing.
    """
    owners = {
        id(m.weight): name for name, m in model.named_modules() if isinstance(m, (_ConvNd, nn.Linear))
    }  # fmt: skip
    candidates = {n: p for n, p in model.named_parameters() if id(p) in owners and p.requires_grad}
    if not candidates:
        raise InvalidValue(
            f"{type(model).__name__} has no prunable layer: no Conv or Linear weight that requires a gradient"
        )

    def matches(patterns: Sequence[str] | str | None, kind: str) -> set[str]:
        found: set[str] = set()
        for text in [patterns] if isinstance(patterns, str) else patterns or []:
            hits = {
                n for n in candidates if fnmatch.fnmatchcase(n, text) or fnmatch.fnmatchcase(n.rpartition(".")[0], text)
            }  # fmt: skip
            if not hits:
                known = ", ".join(list(candidates)[:4])
                raise InvalidValue(f"0 of {len(candidates)} layers matched {kind}={text!r}; they are {known}, ...")
            found |= hits
        return found

    chosen = matches(include, "include") if include is not None else set(candidates)
    chosen -= matches(exclude, "exclude")
    if pattern is not None:
        chosen = {n for n in chosen if candidates[n].shape[1] % pattern[1] == 0}
    if not chosen:
        raise InvalidValue(
            f"include, exclude and pattern leave none of {len(candidates)} layers: {', '.join(list(candidates)[:4])}"
        )
    return {n: p for n, p in candidates.items() if n in chosen}


def _overlap(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> int:
    return sum(int(torch.count_nonzero(a[n] & b[n])) for n in a)


def _sum_over_ranks(tensor: Tensor) -> Tensor:
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def prune(
    model: nn.Module,
    method: Method | str,
    sparsity: float = 0.9,
    data: Iterable[Any] | None = None,
    loss: Any = None,
    **pruner_keywords: Any,
) -> Masks:
    """One shot, no training loop: prunes the model in place and returns the masks.

    Args:
        model: its weights outside the masks become 0; train or eval mode and all else stay.
        sparsity: share of the prunable weights to cut.
        data: batches for methods that need evidence: inputs, or (input, target) pairs; fed as they are.
        loss: loss(output, target), for methods that need gradients.
        pruner_keywords: as for `Pruner` (allocate, pattern, budget, include, exclude, floor, seed).
    Raises: MissingEvidence if the method needs data or a loss that is not given.
    """
    pruner = Pruner(model, method, OneShot(sparsity), **pruner_keywords)
    pruner.observe(data, loss)
    pruner.step()
    pruner.finish()
    return pruner.masks
