"""SD-SNN: each weight has a range that follows it. Filters of narrow ranges are cut, and kernels that push return."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from spikeprune.core.errors import InvalidValue
from spikeprune.core.evidence import Evidence, Scores
from spikeprune.methods.base import Memory, Method, Training, is_number, magnitude
from spikeprune.methods.registry import register
from spikeprune.methods.shared.quantile import quantile, scaled

_SHRINK = 0.75  # of a range, once its weight has faded for long
_MOST = 99.0  # per cent: the highest bar of growth


@register("sd-snn", source="Han et al. 2022, arXiv:2211.12219 (SD-SNN)")
@final
@dataclass(frozen=True)
class SdSnn(Method):
    """Let ranges of weights stretch and shrink, cut filters of narrow ranges, regrow kernels that would grow most.

        w stays in [low, high], which start at -max w and max w of the layer. At each mask update, for each weight:
        at or beyond the end `patience` times on end: the end moves out by how far w was beyond it, on average
        |w| smaller than last time, `patience` times on end: low and high shrink to 0.75 of themselves
        score = mean over the filter of u(high - low) of its alive weights,   u(x) = (x - min) / range of the layer

    A dead kernel (in a Linear layer, a dead weight) keeps the sum of the updates that the optimizer would have made to
    it since the last mask update. It returns once this sum was among the highest of its layer more than `patience`
    mask updates on end. "Among the highest" is above the 65 % quantile, 60 % in a Linear layer, plus 1.1^k % at the
    k-th mask update of growth, from k = 0. What has returned is cut last. The ends hold from mask update `patience` + 2
    on; filters are cut and kernels return from 2 `patience` + 2 on. If the last mask update comes earlier, it cuts the
    smallest |w|. All weights of a filter tie, so an exact count may split one.

    Args:
        patience: mask updates on end until a range moves or a kernel returns; the authors take 18, of 600 in all.
    Raises: InvalidValue for a patience below 1.
    Source: Han et al. 2022, arXiv:2211.12219, and their code (BrainCog, commit 3998fd5), whose masks these equal layer
        by layer at their counts, a step an epoch (tests/authors/sd_snn.py). Their published loop moves the ranges of
        the last layer alone; here those of all layers move, as in the paper. Their dead weights take part in the
        network up to the end of an epoch, here they are 0 and what they would be is kept beside; what has returned is
        never cut again there. Not taken over: their rates of each layer, in whose place the schedule counts.

    Examples:
        >>> pruner = sp.Pruner(model, sp.SdSnn(), sp.Cubic(to=0.75, begin=0, end=6, every=1))
        >>> pruner.attach(optimizer)
        Pruner(...)
        >>> losses = train(6)
        >>> pruner.alive, pruner.prunable
        (192, 768)
    """

    patience: int = 2
    acts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not (is_number(self.patience, whole=True) and self.patience >= 1):
            raise InvalidValue(f"sd-snn takes a patience of 1 or more mask updates, got {self.patience}")

    def after_update(self, training: Training) -> None:
        _begin(training)
        for name, weight in training.weights.items():
            training.memory["drift"][name] += weight * ~training.masks[name]
            weight.mul_(training.masks[name])

    def at_event(self, training: Training) -> bool:
        _begin(training)
        memory = training.memory
        for name, weight in training.weights.items():
            age = int(memory["age"][name].add_(1))
            open_, drift = training.masks[name].clone(), memory["drift"][name]
            memory["once cut"][name] |= ~open_
            if age == 1:
                top = float(weight.max()) if bool(weight.max() > 0) else float(weight.abs().max())
                memory["high"][name].fill_(top)
                memory["low"][name].fill_(-top)
                memory["size"][name].copy_(weight.abs())
            else:
                self._move_range(memory, name, weight)
            free = weight + drift
            if age > self.patience + 1:
                free = free.clamp(memory["low"][name], memory["high"][name])
            if self._grows(age):
                open_ |= self._returned(memory, name, free, open_, age - 2 * self.patience - 2)
            memory["open"][name] = open_
            weight.copy_(free * open_)
            drift.zero_()
        return training.progress >= 1 or all(map(self._grows, map(int, memory["age"].values())))

    def _grows(self, age: int) -> bool:
        return age > 2 * self.patience + 1

    def _move_range(self, memory: Memory, name: str, w: Tensor) -> None:
        high, low, size = memory["high"][name], memory["low"][name], memory["size"][name]
        for end, beyond, kind in ((high, w >= high, "high"), (low, w <= low, "low")):
            full, excess = self._counted(memory, f"{kind}: ", name, beyond, w - end)
            end += torch.where(full, excess / self.patience, 0)
        full, _ = self._counted(memory, "fading: ", name, w.abs() < size, w)
        for end in (high, low):
            end.copy_(torch.where(full, _SHRINK * end, end))
        size.copy_(w.abs())

    def _counted(
        self, memory: Memory, kind: str, name: str, now: Tensor, excess: Tensor
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """The entries for which `now` held `patience` times on end after a first time, and their summed excess.

        Their counts start again from 0.
        """
        before, count, total = (memory[kind + part][name] for part in ("before", "count", "sum"))
        on = now & before
        count.copy_(torch.where(on, count + 1, 0))
        total.copy_(torch.where(on, total + excess, 0))
        full, found = count >= self.patience, total.clone()
        count.masked_fill_(full, 0)
        total.masked_fill_(full, 0)
        before.copy_(now)
        return full, found

    def _returned(self, memory: Memory, name: str, free: Tensor, alive: Tensor, k: int) -> Tensor:
        """The weights that return: whole kernels, above the bar for more than `patience` times on end."""
        kernel = free.dim() > 2
        pushed = free.flatten(2).sum(2) if kernel else free
        dead = ~alive.flatten(2).any(2) if kernel else ~alive
        bar = min((65 if kernel else 60) + 1.1**k, _MOST)
        high = (pushed > quantile(pushed, bar / 100)) & dead
        before, count = memory["grew before"][name], memory["grew count"][name]
        on = high & (before if before.shape == high.shape else torch.zeros_like(high))
        count = torch.where(on, (count if count.shape == high.shape else 0) + 1, torch.zeros_like(pushed))
        back = count > self.patience
        memory["grew before"][name], memory["grew count"][name] = high, count.masked_fill(back, 0)
        return back.reshape(*back.shape, *[1] * (free.dim() - back.dim())).expand_as(free)

    def score(self, evidence: Evidence) -> Scores:
        memory = evidence.memory
        if not memory or not all(map(self._grows, map(int, memory["age"].values()))):
            return magnitude(evidence)
        scores: dict[str, Tensor] = {}
        for name, open_ in memory["open"].items():
            wide = (scaled(memory["high"][name] - memory["low"][name]) * open_).flatten(1).mean(1)
            wide = wide.view(-1, *[1] * (open_.dim() - 1)).expand_as(open_)
            scores[name] = torch.where(open_, wide + memory["once cut"][name].to(wide), -1)
        return scores


def _begin(training: Training) -> None:
    memory, weights = training.memory, training.weights
    if memory:
        return
    bools = ("once cut", "open", "high: before", "low: before", "fading: before", "grew before")
    numbers = ("drift", "high", "low", "size", "grew count")
    numbers += tuple(f"{kind}: {part}" for kind in ("high", "low", "fading") for part in ("count", "sum"))
    for kind in bools:
        memory[kind] = {name: torch.zeros_like(weight, dtype=torch.bool) for name, weight in weights.items()}
    for kind in numbers:
        memory[kind] = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    memory["age"] = {name: torch.zeros((), dtype=torch.int64) for name in weights}
