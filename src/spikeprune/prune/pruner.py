"""The Pruner: the one stateful object, between a model and its optimizer; the training loop stays the user's."""

import ast
import logging
import time
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from spikeprune.core import allocate as allocation
from spikeprune.core.errors import InvalidValue, MissingEvidence, unknown
from spikeprune.core.evidence import Evidence, Scores
from spikeprune.core.mask import Masks, pack, unpack
from spikeprune.core.schedule import Event, OneShot, Schedule
from spikeprune.count.costs import BUDGETS
from spikeprune.methods.base import Memory, Method, Observation, Regrowth, Training, check_choice, check_declared
from spikeprune.methods.registry import make_method, name_of
from spikeprune.model.adapter import adapter_for, find_adapter
from spikeprune.model.prunable import Names, prunable
from spikeprune.model.trace import Graph
from spikeprune.model.wrappers import eager
from spikeprune.prune.pattern import CHANNEL_PATTERNS, nm_pattern
from spikeprune.prune.recorder import Recorder
from spikeprune.prune.rewind import Rewind
from spikeprune.prune.space import Channels, Space, Weights
from spikeprune.prune.table import Row, Table
from spikeprune.prune.update import Outcome, Target, prune_and_regrow, unchanged
from spikeprune.prune.upkeep import Upkeep

_log = logging.getLogger("spikeprune")
_STATE_VERSION = 1
_MEMBRANE = frozenset({"membrane", "spikes"})


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
        pattern: "weight"; "n:m" (such as "2:4") for at most n alive of m neighbouring inputs; "channel" for whole
            channels, with all that must go along; or "gate", which cuts behind a network's own channel gates and leaves
            its residual stream wide. Which channels belong together shows in the first forward.
        budget: what the sparsity is a share of: "weights" (channels under "channel" and "gate"); "parameters", "macs"
            or "synops" rank globally under a budget of that.
        include, exclude: names or patterns (`*`) of parameters or modules; default: every Conv and Linear weight.
        floor: the least that every layer keeps: a count, or a share of the layer if below 1.
        seed: for methods that draw.
        start: "dense", or "random": begin with a random mask at the schedule's first sparsity, so that with a
            `Constant` schedule training is never dense; "erk": the same with layers as "erk" sizes them.
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
        include: Names = None,
        exclude: Names = None,
        floor: float = 1,
        seed: int = 0,
        start: str = "dense",
    ) -> None:
        self.method = make_method(method) if isinstance(method, str) else method
        _check_types(self.method, schedule)
        check_declared(self.method)
        self._regrowth = self.method.regrowth() if self.method.regrows else Regrowth(0.0)
        self._observation: Observation = self.method.observation()
        check_choice("start", start, ("dense", "random", "erk"))
        if budget not in BUDGETS:
            raise unknown("budget", budget, BUDGETS)
        if budget != "weights" and allocate != "global":
            raise InvalidValue(f"budget={budget!r} ranks all layers together; use allocate='global', not {allocate!r}")
        self.schedule = schedule
        self.allocate = allocation.check(allocate)
        self.pattern = pattern
        self.budget = budget
        self.seed = seed
        self.start = start
        self._model = eager(model)
        self._nm = nm_pattern(pattern)
        if self._nm is not None and ("erk" in (allocate, start) or allocate == "lamp" or budget != "weights"):
            raise InvalidValue(
                f"pattern {pattern!r} fixes what every layer keeps, so it takes allocate='global' or 'uniform', no "
                f"start='erk' and budget='weights'; got {allocate!r}, {start!r}, {budget!r}"
            )
        if self._authors and ((allocate, budget) != ("global", "weights") or self._nm is not None):
            raise InvalidValue(
                "rule='authors' is their global ranking of single weights or channels: leave allocate and budget at "
                f"their defaults and take no n:m pattern, got {allocate!r}, {budget!r}, {pattern!r}"
            )
        _check_pattern(self.method, pattern, allocate, start)
        self._parameters = prunable(self._model, include, exclude, self._nm)
        self.floor = floor
        self._upkeep = Upkeep(dict(self._model.named_parameters()))
        common: dict[str, Any] = {"budget": budget, "allocate": allocate, "floor": floor}
        self._space: Space = (
            Channels(self._model, self._parameters, self._upkeep, pattern=pattern, **common)
            if pattern in CHANNEL_PATTERNS
            else Weights(self._model, self._parameters, self._upkeep, nm=self._nm, **common)
        )
        self._share = self._regrowth.share
        self._events = self._plan()
        self._by_step = {event.step: event for event in self._events}
        self._looks = any(map(self._window, self._events))
        adapter = adapter_for(self._model) if self.method.needs & _MEMBRANE else find_adapter(self._model)
        self._recorder = Recorder(model, self._model, adapter, self.method, self._parameters, self._learn)
        self._step = 0
        self._regrown: dict[str, Tensor] | None = None  # of the last event: for survival and grace
        self._ever_regrown: dict[str, Tensor] = {}  # by any event, and not cut again by a later one
        self._grads: dict[str, Tensor] = {}  # of the coming event, dead weights included
        self._before: dict[str, Tensor] = {}  # the weights that they belong to
        self._memory: Memory = {}  # the method's own
        self._acted = False  # whether the method has seen the gradients of the coming update
        self._rewind = None if self.method.rewinds == "never" else Rewind(self._model, self.schedule.begin or 0)
        self._handles: list[Any] = []
        self._warned = False
        self.rounds: list[dict[str, Any]] = []
        self.seconds = 0.0
        # Of the last step: how many gradients of all weights, dead ones too, the method needed in it.
        self.full_gradients = 0
        if start != "dense":
            self._start_random()

    # ---- what it is -------------------------------------------------------------------------------------------

    @property
    def masks(self) -> Masks:
        """Parameter name -> bool tensor of its shape, True = alive. A snapshot; works after `finish` too.

        With channels: of every weight, bias and normalisation that they take along; empty before the first forward.
        """
        return Masks(self._upkeep.masks)

    @property
    def sparsity(self) -> float:
        """Share of the prunable weights (or channels) that is dead."""
        return 1.0 - self.density

    @property
    def density(self) -> float:
        """Share of the prunable weights (or channels) that is alive."""
        return self.alive / self._space.total if self._space.total else 1.0

    @property
    def alive(self) -> int:
        """Number of prunable weights (or channels) that are alive; 0 while the channels are not known."""
        return _count(self._space.alive)

    @property
    def regrown_alive(self) -> dict[str, Tensor]:
        """Parameter name -> bool tensor: the alive weights that some event brought back and no later one cut."""
        alive = self._space.alive
        none = {n: torch.zeros_like(m) for n, m in alive.items()}
        return self._space.masks({n: self._ever_regrown.get(n, none[n]) & alive[n] for n in alive}) if alive else {}

    @property
    def prunable(self) -> int:
        """Number of prunable weights (or channels); 0 while the channels are not known."""
        return self._space.total

    def preview(self) -> tuple[Event, ...]:
        """Every event: its step, target sparsity and the exact number of weights (or channels) it keeps.

        Channels are known after the first forward, or after `trace`; until then the number is None.
        """
        return self._events

    def trace(self, example: Any) -> "Pruner":
        """Looks at one forward on an example now, rather than at the first one that comes by. Nothing changes.

        Args: example: an input as the model takes it; random numbers of the right shape will do.
        Raises: InvalidValue if the model cannot run on it, or its parts cannot be told apart.
        """
        self._recorder.trace(example)
        return self

    @property
    def channels(self) -> dict[str, Tensor]:
        """Layer -> bool [C], True = alive, with a channel pattern; empty for others and before the first forward."""
        return {} if isinstance(self._space, Weights) else {n: m.clone() for n, m in self._space.alive.items()}

    @property
    def round_steps(self) -> tuple[int, int | None]:
        """First and last step of the present round of a method that rewinds; (0, None) for others.

        Each round is a training of its own, so the learning rate starts anew after `first`; None is the end of the run.
        """
        if self._rewind is None:
            return 0, None
        ends = self._step if self.method.rewinds == "each" else self._last_step
        return self._rewind.since, next((event.step for event in self._events if event.step > ends), None)

    @property
    def searching(self) -> bool:
        """Whether a coming event may still change the masks."""
        found = self.method.rewinds == "once" and self._rewind is not None and self._rewind.since > 0
        return self._step < self._last_step and not found

    def quota(self, sparsity: float) -> dict[str, int]:
        """How many weights (or channels) each layer would keep at a sparsity, by the magnitude of the present ones."""
        target = self._space.target(sparsity, {}, self._recorder)
        scores = {n: w.abs() for n, w in self._space.weights().items()}
        alive = self._space.select(scores, {}, self._space.alive, target, share=0.0).alive
        return {n: _count({n: m}) for n, m in alive.items()}

    def table(self) -> Table:
        """One row a layer: weights, alive, density and the neuron it feeds (known after the first forward)."""
        pairs = self._recorder.pairs
        return Table(
            Row(
                name,
                p.numel(),
                _count({name: self._upkeep.masks[name]}) if name in self._upkeep.masks else p.numel(),
                pairs[name].neuron if pairs is not None and name in pairs else None,
                traced=pairs is not None,
            )
            for name, p in self._parameters.items()
        )

    def __repr__(self) -> str:
        return (
            f"Pruner({name_of(self.method)}, {self.schedule!r}, step {self._step}, "
            f"{self.alive} of {self.prunable} {'weights' if isinstance(self._space, Weights) else 'channels'} alive, "
            f"sparsity {self.sparsity:.4f})"
        )

    # ---- attaching and stepping -------------------------------------------------------------------------------

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
        self._upkeep.optimizer = optimizer
        if self._rewind is not None:
            self._rewind.keep(self._step)  # again: since the Pruner was made, weights may have been loaded
        self._hold_state()
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
            self._upkeep.optimizer = optimizer
        self._advance(closure=True)

    def mask_grads(self) -> None:
        """Zeroes the gradients of dead weights; for users who clip gradients, to be called before clipping."""
        self._keep_grads()
        self._act_before()
        if self._cold:
            self._upkeep.hold_grads()

    def finish(self) -> None:
        """Takes every hook off. The model is an ordinary module whose pruned weights are exactly 0."""
        self._remove_hooks()
        self._upkeep.hold()

    @property
    def _cold(self) -> bool:
        """Whether regrown weights start with clean optimizer state, so that gradients of dead weights are masked."""
        if self.method.acts:  # what is dead now may come back by the method's own rule, as long as that is in force
            return not self._acts
        return self._regrowth.clean

    @property
    def _acts(self) -> bool:
        """Whether the method takes part in the present step."""
        return self.method.acts and self._step < self._last_step

    @property
    def _last_step(self) -> int:
        return self._events[-1].step if self._events else 0

    @property
    def _authors(self) -> bool:
        return self._regrowth.rule == "authors"

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        started = time.perf_counter()
        if not _closure(args, kwargs):  # a closure computes the gradients inside the step, so these are old ones
            if not self._grads:  # else the user has called mask_grads, and those of dead weights are gone
                self._keep_grads()
            self._act_before()
            if self._cold:
                self._upkeep.hold_grads()
        self.seconds += time.perf_counter() - started

    def _after_step(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found = getattr(optimizer, "found_inf", None)
        if isinstance(found, Tensor) and bool(found > 0):
            self._grads, self._acted = {}, False
            return  # a fused optimizer skipped this step inside its kernel (GradScaler saw inf)
        started = time.perf_counter()
        self._advance(closure=_closure(args, kwargs))
        self.seconds += time.perf_counter() - started

    def _keep_grads(self) -> None:
        """Before an event, keeps the gradients of all weights for a method that regrows by them."""
        if "grads" in self.method.needs and self._step + 1 in self._by_step:
            tracked = self._space.tracked
            self._grads = {n: p.grad.clone() for n, p in tracked.items() if p.grad is not None}
            self._before = {n: p.detach().clone() for n, p in tracked.items()}

    def _hold_state(self) -> None:
        """Clears optimizer state that dead weights have from before the Pruner knew the optimizer or the masks."""
        if self._cold and not self._upkeep.dense:
            self._upkeep.hold_state(self._upkeep.masks)

    def _full_gradients(self) -> int:
        """`full_gradients` of the step that is being completed."""
        if self._step >= self._last_step:
            return 0
        if not self._cold:
            return 1
        if self._step + 1 not in self._by_step:
            return 0
        # The synapse unit is computed as the layers' weight gradient is, for as many steps as it is averaged over.
        synapses = self._observation.batches if self._observation.unit == "synapse" else 0
        return synapses + ("grads" in self.method.needs)

    def _advance(self, *, closure: bool) -> None:
        if not self._grads:
            self._keep_grads()
        self.full_gradients = self._full_gradients()
        if self._acts:
            self._act_after(closure)
        self._step += 1
        if self._rewind is not None:
            self._rewind.keep(self._step)
        event = self._by_step.get(self._step)
        if event is None:
            self._upkeep.after_step(closure=closure, cold=self._cold)
        else:
            self._run_event(event)
        self._prepare()

    def _act_before(self) -> None:
        if self._acts and not self._acted:
            self._acted = True
            with torch.no_grad():
                self.method.before_update(self._training(self._step + 1, grads=True))

    @torch.no_grad()
    def _act_after(self, closure: bool) -> None:
        if closure and not self._acted and self.method.sees_gradients:
            raise InvalidValue(
                f"{name_of(self.method)} takes part in every step, before the update too: use attach(optimizer) and "
                "steps without a closure, or call mask_grads() before each step"
            )
        self._acted = False
        masks = self.method.after_update(self._training(self._step + 1))
        if masks is not None:
            self._upkeep.set(dict(masks))

    def _training(self, step: int, *, grads: bool = False, event: Event | None = None) -> Training:
        """What the method sees of the step that is being made."""
        first = Event(0, 0, self.schedule.initial, None)
        passed = event or next((e for e in reversed(self._events) if e.step < step), first)
        groups = self._upkeep.optimizer.param_groups if self._upkeep.optimizer is not None else []
        rate_of = {id(p): float(group["lr"]) for group in groups for p in group["params"]}

        def select(scores: Scores) -> Mapping[str, Tensor]:
            return self._select(passed, scores, {}, 0.0, self._space.target(passed.target, {}, self._recorder)).alive

        return Training(
            weights=self._weights(),
            grads={n: p.grad for n, p in self._parameters.items() if p.grad is not None} if grads else {},
            masks=self._upkeep.masks,
            memory=self._memory,
            rates={n: rate_of.get(id(p), 0.0) for n, p in self._parameters.items()},
            progress=min(step / max(self._last_step, 1), 1.0),
            sparsity=self._events[-1].target,
            select=select,
        )

    def _prepare(self) -> None:
        """Tells the recorder what the coming step is for; in steps far from events it has no hooks at all."""
        upcoming = self._step + 1
        event = next((e for e in self._events if e.step >= upcoming), None)
        if event is None or not (self._looks or self.budget in ("macs", "synops") or not self._space.known):
            return
        self._recorder.prepare(
            membrane=upcoming > event.step - self._window(event),
            rates=self.budget == "synops" and upcoming == event.step,
        )

    def _window(self, event: Event) -> int:
        """How many steps are recorded for an event, its own included; 0 if it looks at no neuron."""
        if not self.method.needs & _MEMBRANE or (self.method.regrows and self._share_at(event) == 0):
            return 0
        return self._observation.batches

    def _share_at(self, event: Event) -> float:
        return self._share.share(event.number, len(self._events), event.step)

    def observe(self, data: Iterable[Any] | None, loss: Any = None) -> None:
        """Shows the model batches outside of any training loop; `sp.prune` uses it. Nothing of the model changes.

        Args:
            data: inputs or (input, target) pairs; None if the method needs no evidence.
            loss: loss(output, target), for methods that need gradients.
        Raises: MissingEvidence if the method needs what is not given.
        """
        membrane, rates = self._looks, self.budget == "synops"
        graph = self.budget in ("macs", "synops") or not self._space.known
        differentiates = "grads" in self.method.needs
        if data is None:
            if membrane or graph or differentiates:
                raise MissingEvidence(f"{name_of(self.method)} must see batches of data; pass data=")
            return
        if differentiates and loss is None:
            raise MissingEvidence(f"{name_of(self.method)} needs gradients; pass loss=, for example F.cross_entropy")
        found = self._recorder.observe(
            data, loss if differentiates else None, membrane=membrane, rates=rates, graph=graph
        )
        self._grads = {n: g for n, g in found.items() if n in self._space.tracked}

    def cut(self) -> None:
        """Makes the next event now, with no training step around it; `sp.prune` uses it."""
        event = next((event for event in self._events if event.step > self._step), None)
        if event is None:
            return
        self._step = event.step
        self._run_event(event)

    # ---- one event --------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _run_event(self, event: Event) -> None:
        cuts = self.method.at_event(self._training(event.step, event=event))
        outcome = self._cut(event) if cuts else unchanged(self._space.alive)
        self._record(event, outcome, cuts)
        self._space.apply(outcome, self._regrowth.start_value, self._cold)
        stayed = {n: m & outcome.survivors[n] for n, m in self._ever_regrown.items()}
        self._ever_regrown = {n: m | stayed[n] if n in stayed else m for n, m in outcome.regrown.items()}
        self._regrown = outcome.regrown
        if cuts and self._rewind is not None:
            self._rewind.go(self._step, self._upkeep)
        if event is self._events[-1]:
            self._memory = {}
        self._grads, self._before = {}, {}
        self._recorder.forget()

    def _cut(self, event: Event) -> Outcome:
        share = self._share_at(event) if self.method.regrows else 0.0
        after = share > 0 and self._observation.measure == "after"
        looks = self._window(event) > 0
        self._recorder.check()
        target = self._space.target(event.target, self._recorder.rates(_sum_over_ranks), self._recorder)
        evidence = self._evidence(event, membrane=looks and not after)
        scores = self.method.score(evidence)
        if after:
            self._measure_after(event, scores, share, target)
            evidence = self._evidence(event, membrane=True)
        regrow_scores = self.method.regrow_score(evidence) if share > 0 else {}
        growth = self.method.growth(evidence) if share > 0 and self.method.within_layers else None
        return self._select(event, scores, regrow_scores, share, target, growth)

    def _evidence(self, event: Event, *, membrane: bool) -> Evidence:
        grads = {n: _sum_over_ranks(g) for n, g in self._grads.items()}
        values = self._before or {n: p.detach() for n, p in self._space.tracked.items()}
        statistics = self._recorder.statistics(_sum_over_ranks) if membrane else None
        return Evidence(
            weights=self._space.weights(),
            masks=self._space.alive,
            generator=torch.Generator().manual_seed(self.seed * 1_000_003 + event.number),
            number=event.number,
            count=len(self._events),
            grads=self._space.grads(grads, values) if grads else {},
            before=self._space.weights(values) if grads else None,
            statistics=None if statistics is None else self._space.statistics(statistics, self._recorder),
            state=self._upkeep.state() if "state" in self.method.needs else None,
            memory=self._memory,
            channels=self._space.facts() if self.method.channels else None,
        )

    def _select(
        self,
        event: Event,
        scores: Scores,
        regrow_scores: Scores,
        share: float,
        target: Target,
        growth: Mapping[str, float] | None = None,
    ) -> Outcome:
        def exchange(kept: int, alive: int) -> int:
            return self.method.survivors(kept, alive, share)

        alive = self._space.alive
        if self._authors:
            return self._space.authors(regrow_scores, event.target, share)
        return self._space.select(
            scores,
            regrow_scores,
            # What a method that acts has set to 0 by its own rule may come back by it.
            {n: torch.ones_like(m) for n, m in alive.items()} if self.method.acts else alive,
            target,
            share=share,
            candidates=self._regrowth.candidates,
            protected=self._regrown if self._regrowth.grace else None,
            exchange=exchange if self.method.within_layers else None,
            growth=growth,
        )

    def _measure_after(self, event: Event, scores: Scores, share: float, target: Target) -> None:
        """For measure="after": makes the event's cut, runs the step's forwards once more, and puts the weights back."""
        growing = self._space.may_regrow(self._recorder)
        anything = {n: torch.zeros_like(s) for n, s in scores.items() if n in growing}
        survivors = self._space.masks(self._select(event, scores, anything, share, target).survivors)
        before = {n: self._model.get_parameter(n).data.clone() for n in survivors}
        for name, mask in survivors.items():
            self._model.get_parameter(name).data.mul_(mask)
        self._recorder.measure_again()
        for name, value in before.items():
            self._model.get_parameter(name).data.copy_(value)

    def _record(self, event: Event, outcome: Outcome, cuts: bool) -> None:
        """Adds to `rounds`; how many of the last round's regrown weights survived is known only now.

        At a constant sparsity nothing is cut to the target: there the cut that makes room for growth judges them.
        """
        newly_cut = {n: m & ~outcome.reference[n] for n, m in self._space.alive.items()}
        if self.rounds and self._regrown is not None:
            last = self.rounds[-1]
            last["survived"] = _overlap(self._regrown, outcome.reference if _count(newly_cut) else outcome.survivors)
            if last["survived"] < 0.02 * last["regrown"] and not self._warned:
                self._warned = True
                _log.warning(
                    "of %d weights regrown at step %d only %d outlived the next cut, so the score hardly matters; "
                    "space events further apart, raise the learning rate, or pass grace=True",
                    last["regrown"], last["step"], last["survived"],
                )  # fmt: skip
        self.rounds.append(
            {
                "step": event.step,
                "target": event.target,
                "cut": cuts,
                "kept": _count(outcome.alive),
                "regrown": _count(outcome.regrown),
                "rescued": _overlap(newly_cut, outcome.alive),
                "survived": None,
                "layers": {
                    n: {"kept": _count({n: m}), "regrown": _count({n: outcome.regrown[n]})}
                    for n, m in outcome.alive.items()
                },
            }
        )

    # ---- set-up, saving ---------------------------------------------------------------------------------------

    def _weights(self) -> dict[str, Tensor]:
        return {n: p.detach() for n, p in self._parameters.items()}

    def _plan(self) -> tuple[Event, ...]:
        steps = self.schedule.steps() if self.method.prunes else ()
        targets = [self.schedule.value(number, len(steps)) for number in range(1, len(steps) + 1)]
        most = 1.0 if self._nm is None else 1 - self._nm[0] / self._nm[1]
        if targets and max(targets) > most + 1e-9:
            raise InvalidValue(
                f"pattern {self.pattern!r} allows sparsity {most:g} at most, the schedule asks for {max(targets):g}"
            )
        return tuple(
            self._space.event(Event(number, step, target, None))
            for number, (step, target) in enumerate(zip(steps, targets, strict=True), start=1)
        )

    def _learn(self, graph: Graph) -> None:
        """The model has been traced: what needed that can be said now."""
        self._space.learn(graph, max((event.target for event in self._events), default=0.0))
        self._events = tuple(map(self._space.event, self._events))
        self._by_step = {event.step: event for event in self._events}

    def _start_random(self) -> None:
        """A random mask at the schedule's first sparsity, by the allocation; weights outside it become 0 at once."""
        keep = allocation.kept(self._space.total, self.schedule.initial)
        generator = torch.Generator().manual_seed(self.seed)
        noise = {n: torch.rand(p.shape, generator=generator).to(p.device) for n, p in self._parameters.items()}
        allocate = self.allocate if self.start == "random" else self.start
        target = Target(keep, allocate, allocation.floors(self._parameters, self.floor), pattern=self._nm)
        self._upkeep.set(prune_and_regrow(noise, {}, self._upkeep.masks, self._weights(), target, share=0.0).alive)
        self._upkeep.hold()

    def _remove_hooks(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._recorder.remove()

    def settings(self) -> dict[str, Any]:
        """What a saved state must agree with: everything that decides which masks come out."""
        return {
            "method": repr(self.method),
            "schedule": repr(self.schedule),
            "allocate": self.allocate,
            "pattern": self.pattern,
            "budget": self.budget,
            "floor": self.floor,
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
            "masks": {n: pack(m) for n, m in self._upkeep.masks.items()},
            "regrown": None if self._regrown is None else {n: pack(m) for n, m in self._regrown.items()},
            "ever_regrown": {n: pack(m) for n, m in self._ever_regrown.items()},
            "rounds": [dict(r) for r in self.rounds],
            "totals": self._recorder.totals(),
            "space": self._space.state_dict(),
            "memory": {kind: dict(tensors) for kind, tensors in self._memory.items()},
            "rewind": None if self._rewind is None else self._rewind.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any], *, strict: bool = True) -> None:
        """Takes up a saved state, before or after `attach`; weights outside the masks become 0.

        Raises: InvalidValue if the state was saved under other settings (unless `strict=False`) or is damaged.
        """
        try:
            if state["version"] != _STATE_VERSION:
                raise InvalidValue(f"pruner state has version {state['version']}, this library reads {_STATE_VERSION}")
            mine, theirs = self.settings(), state["settings"]
            different = [
                key for key in mine if mine[key] != theirs.get(key) and not _same_call(mine[key], theirs.get(key))
            ]
            if strict and different:
                raise InvalidValue(
                    f"the saved pruner state was made with another {different[0]}: "
                    f"{str(theirs.get(different[0]))[:80]}; make the Pruner alike, or pass strict=False"
                )
            names = state["masks"] if isinstance(self._space, Channels) else self._parameters
            shapes = {n: tuple(self._model.get_parameter(n).shape) for n in names}
            device = next(iter(self._parameters.values())).device
            masks = {n: unpack(state["masks"][n].to(device), shape) for n, shape in shapes.items()}
            regrown = None if state["regrown"] is None else self._space.unpacked(state["regrown"], state["space"])
            ever_regrown = self._space.unpacked(state.get("ever_regrown") or {}, state["space"])
            step, rounds, totals = int(state["step"]), [dict(r) for r in state["rounds"]], dict(state["totals"])
            memory = {kind: {n: v.to(device) for n, v in tensors.items()} for kind, tensors in state["memory"].items()}
            if self._rewind is not None:
                self._rewind.load_state_dict(state["rewind"])
        except (KeyError, TypeError, AttributeError) as error:
            raise InvalidValue(f"this is not a saved pruner.state_dict(), or it is damaged ({error!r})") from error
        self._step, self._regrown, self.rounds = step, regrown, rounds
        self._ever_regrown = ever_regrown
        self._memory = memory
        self._upkeep.set(masks)
        self._space.load_state_dict(state["space"])
        self._upkeep.hold()
        self._hold_state()
        self._recorder.load_totals(totals)
        if self._handles:
            self._prepare()


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
    pruner.cut()
    pruner.finish()
    return pruner.masks


def _check_pattern(method: Method, pattern: str, allocate: str, start: str) -> None:
    """What the pattern has to do with the method. Raises: InvalidValue."""
    name = name_of(method)
    if pattern not in CHANNEL_PATTERNS:
        if method.channels:
            raise InvalidValue(f"{name} scores whole channels; pass pattern='channel' or 'gate', got {pattern!r}")
        return
    if "erk" in (allocate, start) or start != "dense":
        raise InvalidValue(
            f"pattern {pattern!r} starts dense and knows no ERK sizes, which follow from the shapes of kernels; got "
            f"allocate={allocate!r}, start={start!r}"
        )
    by_weight = method.acts or method.rewinds != "never" or "state" in method.needs
    if by_weight or (method.regrows and "grads" in method.needs) or method.observation().unit == "synapse":
        raise InvalidValue(
            f"{name} works by single weights (a cut channel has no gradient and no synapse that would speak for it); "
            f"for pattern {pattern!r} take criticality, random, magnitude, or a channel score such as bn-scale"
        )


def _same_call(a: object, b: object) -> bool:
    """Whether two representations of an object say the same; 0.1 wrote the settings of a method in another order."""
    try:
        calls = [ast.parse(text, mode="eval").body for text in (a, b) if isinstance(text, str)]
    except SyntaxError:
        return False
    said = [
        (ast.dump(call.func), sorted((str(k.arg), ast.dump(k.value)) for k in call.keywords))
        for call in calls
        if isinstance(call, ast.Call) and not call.args
    ]
    return len(said) == 2 and said[0] == said[1]


def _check_types(method: object, schedule: object) -> None:
    if not isinstance(method, Method):
        raise InvalidValue(f"method must be a method object or a name such as 'criticality', got {method!r}")
    if not isinstance(schedule, Schedule):
        raise InvalidValue(f"schedule must be a schedule such as Cubic(to=0.9, begin=0, ...), got {schedule!r}")


def _closure(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether a step was given a closure. The arguments that torch hands to step hooks begin with the optimizer."""
    return any(value is not None for value in (*args[1:], kwargs.get("closure")))


def _count(masks: Mapping[str, Tensor]) -> int:
    return sum(int(torch.count_nonzero(mask)) for mask in masks.values())


def _overlap(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> int:
    return sum(int(torch.count_nonzero(a[n] & b[n])) for n in a)


def _sum_over_ranks(tensor: Tensor) -> Tensor:
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(tensor)
    return tensor
