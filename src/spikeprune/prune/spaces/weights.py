"""Single weights as what is pruned one by one: the units of a tensor are its entries."""

from collections.abc import Mapping
from typing import Unpack, cast, final

import torch
from torch import Tensor, nn

from spikeprune.core import allocate as allocation
from spikeprune.core.errors import InvalidValue
from spikeprune.core.evidence import Scores
from spikeprune.core.mask import Outcome, check_fit, unpack
from spikeprune.core.select import best_of_rows
from spikeprune.core.update import Bools, Rules, Target, prune_and_regrow
from spikeprune.count.costs import weight_budget
from spikeprune.methods.shared.authors import authors_update
from spikeprune.model.observer import Observer
from spikeprune.model.prunable import normed_by_row
from spikeprune.model.trace import Graph
from spikeprune.model.weights import along_outputs
from spikeprune.prune.spaces.space import Parts, Space, Tensors
from spikeprune.record.checkpoint import SpaceState, WeightsState


@final
class Weights(Space):
    """Single weights. `nm` is (n, m) of an n:m pattern.

    Attributes:
        fixed: parameter name -> mask of parameters that are held but never chosen from, such as biases.
        normed: names of weights whose rows are divided by their norm, so that none may be 0 as a whole.
    """

    def __init__(self, parts: Parts, nm: tuple[int, int] | None = None) -> None:
        self.parts, self.nm = parts, nm
        self._total = sum(p.numel() for p in parts.parameters.values())
        self.fixed: dict[str, Tensor] = {}
        self._least = allocation.floors(parts.parameters, 1 if parts.floor is None else parts.floor)
        self.normed = normed_by_row(parts.model, parts.parameters)
        self._least |= {n: max(self._least[n], len(parts.parameters[n])) for n in self.normed}
        self._last: dict[str, Tensor] = {}  # values that dead weights had when they were cut, for start_value="last"
        self.hold({})

    def hold(self, masks: Tensors) -> None:
        """Takes masks: those of prunable parameters, and others, which stay as they are. No mask: all alive."""
        whole = {n: torch.ones_like(p, dtype=torch.bool) for n, p in self.parts.parameters.items()}
        self.fixed = {n: m for n, m in masks.items() if n not in whole}
        self._set(whole | dict(masks))

    def _set(self, masks: Tensors) -> None:
        dead = next((n for n in sorted(self.normed) if not bool(masks[n].flatten(1).any(1).all())), None)
        if dead is not None:
            raise InvalidValue(
                f"each row of {dead!r} is divided by its norm (weight_norm), so it must keep a weight, and some row "
                "keeps none; take a lower sparsity, or remove the parametrisation"
            )
        self.parts.upkeep.set({n: masks[n] for n in self.parts.parameters} | self.fixed)

    @property
    def known(self) -> bool:
        return True

    @property
    def total(self) -> int:
        return self._total

    def start_random(self, sparsity: float, allocate: str, seed: int) -> None:
        """A random mask, spread over the layers as `allocate` says; weights outside it become 0 at once."""
        generator = torch.Generator().manual_seed(seed)
        parameters = self.parts.parameters
        noise = {n: torch.rand(p.shape, generator=generator).to(p.device) for n, p in parameters.items()}
        target = Target(allocation.kept(self.total, sparsity), allocate, self._least, pattern=self.nm)
        self._set(self.select(noise, {}, self.alive, target, share=0.0).alive)
        self.parts.upkeep.hold()

    @property
    def alive(self) -> dict[str, Tensor]:
        return {n: self.parts.upkeep.masks[n] for n in self.parts.parameters}

    @property
    def tracked(self) -> Mapping[str, nn.Parameter]:
        return self.parts.parameters

    def learn(self, graph: Graph, most: float) -> None:
        pass  # weights need no trace to be known

    def weights(self, values: Tensors | None = None) -> dict[str, Tensor]:
        return {n: p.detach() for n, p in self.parts.parameters.items()} if values is None else dict(values)

    def grads(self, grads: Tensors, values: Tensors) -> dict[str, Tensor]:
        return dict(grads)

    def facts(self, grads: Tensors, before: Tensors) -> None:
        return None

    def statistics(self, found: Tensors, observer: Observer) -> Tensors:
        pairs, modules = observer.pairs or {}, dict(self.parts.model.named_modules())
        return {
            n: along_outputs(v, self.parts.parameters[n], modules.get(pairs[n].layer), pairs[n].use)
            for n, v in found.items()
        }

    def may_regrow(self, observer: Observer) -> set[str]:
        return {n for n in self.parts.parameters if observer.feeds_neuron(n)}

    def target(self, sparsity: float, rates: Tensors, observer: Observer) -> Target:
        keep = allocation.kept(self.total, sparsity)
        if self.parts.budget == "weights":
            return Target(keep, self.parts.allocate, self._least, pattern=self.nm)
        p = self.parts
        cost, allowed = weight_budget(p.budget, p.model, p.parameters, observer.graph, rates, sparsity)
        return Target(keep, self.parts.allocate, self._least, cost=cost, budget=allowed)

    def select(
        self, scores: Scores, regrow_scores: Scores, alive: Bools, target: Target, **rules: Unpack[Rules]
    ) -> Outcome:
        if self.normed:
            best = {n: best_of_rows(s, alive[n]) if n in self.normed else s > s for n, s in scores.items()}
            known = rules.get("protected") or {}
            rules["protected"] = {n: m | known[n] if n in known else m for n, m in best.items()}
        return prune_and_regrow(scores, regrow_scores, alive, self.weights(), target, **rules)

    def authors(self, regrow_scores: Scores, sparsity: float, share: float) -> Outcome:
        return authors_update(self.weights(), regrow_scores, int(self.total * (1 - sparsity)), share)

    def masks(self, units: Bools) -> dict[str, Tensor]:
        return dict(units)

    def apply(self, outcome: Outcome, start_value: str, clean: bool) -> None:
        """Zeroes the weights that the cut removed, gives regrown weights their value, and sets the masks.

        Args:
            start_value: the value of a regrown weight, as in `Regrowth`; "exchanged" is "kept" with `cut_forgets`.
            clean: whether the optimizers' state of the zeroed weights is cleared too.
        """
        before = self.alive
        for name, p in self.parts.parameters.items() if start_value == "last" else ():
            last = self._last.get(name, torch.zeros_like(p))
            self._last[name] = torch.where(before[name], p.detach(), last)
        untouched = outcome.survivors
        if start_value in ("kept", "exchanged"):
            spared = {n: outcome.regrown[n] & before[n] for n in untouched}
            if start_value == "exchanged":  # what the cut to the target took is gone, as in GraNet's code
                spared = {n: m & outcome.reference[n] for n, m in spared.items()}
            untouched = {n: m | spared[n] for n, m in untouched.items()}
        self.parts.upkeep.forget(untouched, state=clean)
        for name, p in self.parts.parameters.items() if start_value == "last" else ():
            p.data.add_(self._last[name] * outcome.regrown[name])
        self._set(outcome.alive)

    def state_dict(self) -> WeightsState:
        return {"last": dict(self._last)}

    def load_state_dict(self, state: SpaceState) -> None:
        last = cast(WeightsState, state)["last"]
        check_fit(last, self.parts.parameters)
        self._last = {n: v.to(self.parts.parameters[n]) for n, v in last.items()}

    def unpacked(self, bits: Tensors, state: SpaceState) -> dict[str, Tensor]:
        device = next(iter(self.parts.parameters.values())).device
        return {n: unpack(b.to(device), tuple(self.parts.parameters[n].shape)) for n, b in bits.items()}

    def held(self, bits: Tensors) -> dict[str, Tensor]:
        device = next(iter(self.parts.parameters.values())).device
        names = [*self.parts.parameters, *self.fixed]
        return {n: unpack(bits[n].to(device), tuple(self.parts.model.get_parameter(n).shape)) for n in names}
