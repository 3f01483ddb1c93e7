"""The parts of all time steps laid over each other: what every step does alike is one step of the graph.

A part's key is the function, its constants, and the keys of what it reads in the same time step. Parts of different
time steps with one key are one step; what they read from a time step before becomes a delay.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from spikeprune.core.errors import InvalidValue
from spikeprune.runtime.steps.blocks import Origins, Place
from spikeprune.runtime.steps.steps import Region, StepFunction

Key = int


@dataclass
class Rolled:
    """One time step of the network.

    Attributes:
        steps: key -> step; its sources are ("n", key, delay) and ("k", call, 0).
        initial: key -> value before the first time step.
        output: what the model returns, ("sequence", region) or ("last", tail).
        tail: steps after the last time step, by key; sources ("n", key, 0) are the last value, or all of them for a
            step that reduces over time.
    """

    steps: dict[Key, StepFunction]
    initial: dict[Key, Tensor]
    output: Region
    sequence: bool
    tail: dict[Key, StepFunction] = field(default_factory=dict[Key, StepFunction])


Alike = Callable[[Region, Region, Rolled], bool]  # of a steady step and of the first one


class Roller:
    """Finds the keys; see the file's first lines."""

    def __init__(self, origins: Origins, T: int) -> None:
        self.o, self.T = origins, T
        self.known: dict[Any, Key] = {}
        self.key: dict[Place, Key] = {}
        self.constants: dict[int, Key] = {}
        for place in origins.steps:
            self.key[place] = self._key(place, None)
        self.at = max(T - 2, 0)
        steady = [p for p in origins.steps if p[1] == self.at]
        deeper = {p: self._key(p, self.key) for p in steady}
        seen: dict[Key, Key] = {}
        for place in steady:
            if seen.setdefault(self.key[place], deeper[place]) != deeper[place]:
                raise InvalidValue(
                    "cannot compile the model: two of its parts look alike and differ in what they keep from step to "
                    "step; give them layers of their own"
                )
        self.steady: dict[Key, Place] = {}
        for place in steady:
            self.steady.setdefault(self.key[place], place)

    def _number(self, what: Any) -> Key:
        return self.known.setdefault(what, len(self.known))

    def _content(self, tensor: Tensor) -> str:
        data = tensor.detach().contiguous().numpy().tobytes()
        return f"{tuple(tensor.shape)} {hashlib.sha1(data, usedforsecurity=False).hexdigest()}"

    def _constant(self, call: int) -> Key:
        if call not in self.constants:
            self.constants[call] = self._number(("k", self._content(self.o.calls[call].value.float())))
        return self.constants[call]

    def _region(self, region: Region, t: int, before: dict[Place, Key] | None) -> Any:
        sources: list[Any] = []
        for kind, what in region.sources:
            if kind == "k":
                sources.append(self._constant(what))
            elif what[1] == t:
                sources.append(self.key[what])
            else:
                sources.append((t - what[1], None if before is None else before[what]))
        index = None if region.index is None else self._content(region.index)
        return (tuple(sources), index, region.shape)

    def _key(self, place: Place, before: dict[Place, Key] | None) -> Key:
        step = self.o.steps[place]
        inputs = tuple(self._region(r, place[1], before) for r in step.inputs)
        constants = tuple(self._content(c) for c in step.constants)
        template = json.dumps([step.template, sorted(step.keywords)], default=str)
        return self._number((step.name, template, inputs, constants, step.shape, before is not None))

    # -- the graph of one step ---------------------------------------------------------------------------------------

    def roll(self, output: Tensor) -> Rolled:
        rows = self.o.rows(output, self.o.calls[-1])
        call = self.o.calls[-1]
        region = {t: self.o.region(output.reshape(-1)[r.index], r.shape, call) for t, r in rows.items()}
        rolled = Rolled({}, {}, Region((), []), len(rows) > 1)
        if rolled.sequence:
            if list(rows) != list(range(self.T)):
                raise InvalidValue(
                    "a compiled model returns all time steps, or one result; this one returns a part of them: let it "
                    "return [T, N, ...] or [N, ...]"
                )
            rolled.output = self._steady(region[self.at], self.at, rolled)
        else:
            (t,) = rows
            if t != self.T - 1:
                raise InvalidValue(
                    "the model's output does not depend on the last time step, so T cannot be told; let it read all "
                    "time steps or the last one"
                )
            rolled.output = self._tailed(region[t], rolled)
        for key in list(rolled.steps):
            self._initial(key, rolled)
        return rolled

    def _steady(self, region: Region, t: int, rolled: Rolled) -> Region:
        def source(what: Place) -> tuple[Any, ...]:
            key = self.key[what]
            if key not in self.steady:
                name = self.o.calls[what[0]].module
                raise InvalidValue(
                    f"cannot compile {_where(name)}: it computes something else at each time "
                    "step; sp.compile takes models that do the same at every step"
                )
            self._add(key, self.steady[key], rolled)
            return "n", key, t - what[1]

        return _followed(region, source)

    def _add(self, key: Key, place: Place, rolled: Rolled) -> None:
        if key in rolled.steps:
            return
        step = self.o.steps[place]
        made = StepFunction(step.name, step.template, [], step.constants, step.shape, step.module, step.keywords)
        rolled.steps[key] = made  # before its inputs, which may read it a step later
        made.inputs = [self._steady(r, place[1], rolled) for r in step.inputs]

    def _tailed(self, region: Region, rolled: Rolled) -> Region:
        def source(what: Place) -> tuple[Any, ...]:
            key = self.key[what]
            if key in self.steady:
                if what[1] != self.T - 1:
                    raise InvalidValue("the model's output reads single time steps; let it read all or the last")
                self._add(key, self.steady[key], rolled)
            elif key not in rolled.tail:
                self._tail_step(key, what, rolled)
            return "n", key, 0

        return _followed(region, source)

    def _tail_step(self, key: Key, place: Place, rolled: Rolled) -> None:
        step = self.o.steps[place]
        made = StepFunction(step.name, step.template, [], step.constants, step.shape, step.module, step.keywords)
        if step.name.startswith("time_"):
            times = step.template[1]
            if times != list(range(self.T)):
                raise InvalidValue(
                    f"cannot compile {_where(step.module)}: it reduces over some of the time steps alone; let it "
                    "reduce over all of them"
                )
            made.inputs = [self._steady(step.inputs[self.at], self.at, rolled)]
        else:
            made.inputs = [self._tailed(r, rolled) for r in step.inputs]
        rolled.tail[key] = made

    # -- before the first step ---------------------------------------------------------------------------------------

    def _initial(self, consumer: Key, rolled: Rolled) -> None:
        """A source's value before the first step is the constant that stands in its place at the first step."""
        step = rolled.steps[consumer]
        delayed = {
            k: r.sources[0][1]
            for k, r in enumerate(step.inputs)
            if len(r.sources) == 1 and r.sources[0][0] == "n" and r.sources[0][2] == 1
        }
        if not delayed or all(key in rolled.initial for key in delayed.values()):
            return
        # At the first step other values may stand around: the same ones, then of the same functions, then any.
        for alike in (self._same, self._same_function, None):
            ways = [
                found
                for place, first in self.o.steps.items()
                if place[1] == 0
                and (first.name, tuple(first.shape), len(first.template))
                == (step.name, tuple(step.shape), len(step.template))
                and (alike == self._same or first.module == step.module)
                and (found := self._standing(step, first, delayed, rolled, alike))
            ]
            if alike is None and any(not _equal(ways[0], other) for other in ways[1:]):
                raise InvalidValue(
                    f"cannot compile {_where(step.module)}: the value that it begins with at the first time step "
                    "cannot be told; give the neuron its state as an argument, or use a plain neuron"
                )
            if ways:
                for key, value in ways[0].items():
                    rolled.initial.setdefault(key, value)
                return

    def _standing(
        self, step: StepFunction, first: StepFunction, delayed: dict[int, Key], rolled: Rolled, alike: Alike | None
    ) -> dict[Key, Tensor] | None:
        """The constants that the first time step has in place of a step's delayed inputs.

        None if the two steps differ.
        """
        found: dict[Key, Tensor] = {}
        for mine, its in zip(step.template, first.template, strict=True):
            if isinstance(mine, tuple) and mine[0] == "i" and mine[1] in delayed:
                if not (isinstance(its, tuple) and its[0] == "c"):
                    return None
                value = first.constants[its[1]]
                found[delayed[mine[1]]] = value.reshape(1) if value.numel() == 1 else value
            elif isinstance(mine, tuple) and mine[0] == "i":
                if not (isinstance(its, tuple) and its[0] == "i"):
                    return None
                if alike is not None and not alike(step.inputs[mine[1]], first.inputs[its[1]], rolled):
                    return None
            elif isinstance(mine, tuple) != isinstance(its, tuple) or (not isinstance(mine, tuple) and mine != its):
                return None
        return found

    def _same(self, mine: Region, its: Region, rolled: Rolled) -> bool:
        return [s[1] for s in mine.sources] == [self.key.get(w) if k == "p" else w for k, w in its.sources]

    def _same_function(self, mine: Region, its: Region, rolled: Rolled) -> bool:
        """Whether two regions read the results of the same functions; constants are not looked at."""
        ours = [rolled.steps[s[1]].name if s[0] == "n" else None for s in mine.sources]
        return ours == [self.o.steps[w].name if k == "p" else None for k, w in its.sources]


def _where(module: str) -> str:
    return repr(module) if module else "the model's forward"


def _equal(found: dict[Key, Tensor], other: dict[Key, Tensor]) -> bool:
    return found.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in found.items())


def _followed(region: Region, source: Callable[[Place], tuple[Any, ...]]) -> Region:
    """The region with a source of the graph for each call that it reads; constants stay."""
    sources = [("k", what, 0) if kind == "k" else source(what) for kind, what in region.sources]
    return Region(region.shape, sources, region.index)
