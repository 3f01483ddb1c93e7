"""Shared by the lottery-ticket methods: rounds of training, pruning and going back. No method is registered here."""

import math
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from spikeprune.core.errors import InvalidValue
from spikeprune.core.evidence import Scores
from spikeprune.core.schedule import Constant, Geometric
from spikeprune.methods.base import Memory, Training, is_number
from spikeprune.methods.registry import RecipeHints

SHARED = 20 / 280  # epochs before the rewind point over epochs of a round, in the code of arXiv:2207.01382


def check_rate(rate: float) -> None:
    """Raises: InvalidValue if `rate`, the share pruned in a round, is not in (0, 1)."""
    if not 0 < rate < 1:
        raise InvalidValue(f"rate must be in (0, 1), the share of the alive weights pruned in a round, got {rate}")


def check_search(distance: float, window: int, patience: float) -> None:
    """Raises: InvalidValue for a setting of the search for early tickets outside what is allowed."""
    if not (distance > 0 and window >= 2 and 0 < patience < 1):
        raise InvalidValue(
            "an early ticket needs distance above 0, window of 2 or more masks and patience in (0, 1), "
            f"got {distance}, {window}, {patience}"
        )


def check_search_T(search_T: int | None) -> None:
    """Raises: InvalidValue if the number of time steps of a search is neither None nor a positive number."""
    if search_T is not None and not (is_number(search_T, whole=True) and search_T >= 1):
        raise InvalidValue(f"search_T must be None (chosen by the network) or 1 or more time steps, got {search_T}")


def rounds(sparsity: float, steps: int, rate: float) -> Geometric:
    """The schedule of iterative pruning over a run of `steps`: k prunings, so k + 1 trainings of equal length.

        k = ceil(log(1 - sparsity) / log(1 - rate) - 0.1),   density after n of them: (1 - sparsity)^(n / k)

    The first training is longer by what precedes the rewind point (20 epochs where a round has 280). The share pruned
    in a round is `rate` as nearly as the target allows, which is met exactly.

    Raises: InvalidValue if the run is too short for its rounds.
    """
    count = max(1, math.ceil(math.log(1 - sparsity) / math.log(1 - rate) - 0.1))
    every = int(steps / (count + 1 + SHARED))
    if every < 1:
        raise InvalidValue(
            f"a sparsity of {sparsity:g} takes {count} rounds and a last training, too many for {steps} steps; raise "
            "epochs, or prune more in a round with --rate"
        )
    begin = min(round(SHARED * every), steps - every * (count + 1))
    return Geometric(sparsity, begin=begin, end=begin + count * every, every=every)


def looks(sparsity: float, steps: int, per_epoch: int, patience: float) -> Constant:
    """The schedule of a search for early tickets: the mask is compared after every epoch, and at least ten times.

    Args: patience: share of the steps after which the search ends.
    """
    end = max(1, int(steps * patience))
    every = max(1, min(per_epoch, end // 10))
    return Constant(sparsity, begin=0, end=end, every=every)


def settled(training: Training, scores: Scores, window: int, distance: float) -> bool:
    """Whether the mask that `scores` would make now differs little from those at the last `window - 1` looks.

    It does if the share of weights whose mask differs is below `distance` for each of them. The first True, or the last
    look, which gives True in any case, ends the search; every later call gives False. The first mask that counts is
    that of the initial weights, as in the code of arXiv:2207.01382, which looks before each epoch.
    """
    memory: Memory = training.memory
    if "found" in memory:
        return False
    if not memory and training.start:
        first = training.select({name: training.start[name].abs() for name in scores})
        memory["mask 0"] = {name: value.clone() for name, value in first.items()}
    mask = training.select(scores)
    earlier = [memory[kind] for kind in sorted(memory)]
    stable = len(earlier) == window - 1 and all(_distance(mask, other) < distance for other in earlier)
    if stable or training.progress >= 1:
        memory.clear()
        memory["found"] = {}
        return True
    keep = [*earlier, {name: value.clone() for name, value in mask.items()}][-(window - 1) :]
    memory.clear()
    memory.update({f"mask {number}": dict(masks) for number, masks in enumerate(keep)})
    return False


def _distance(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    different = sum(int(torch.count_nonzero(a[name] ^ b[name])) for name in a)
    return different / sum(mask.numel() for mask in a.values())


class HasRate(Protocol):
    """The interface of a method that prunes in rounds: it has a rate."""

    @property
    def rate(self) -> float: ...


class HasPatience(Protocol):
    """A method that searches for an early ticket and has the setting `patience`."""

    @property
    def patience(self) -> float: ...


class HasSearchT(Protocol):
    """A method whose search takes fewer time steps."""

    @property
    def search_T(self) -> int | None: ...


def _rounds(method: HasRate, sparsity: float, steps: int, per_epoch: int) -> Geometric:
    return rounds(sparsity, steps, method.rate)


def _looks(method: HasPatience, sparsity: float, steps: int, per_epoch: int) -> Constant:
    return looks(sparsity, steps, per_epoch, method.patience)


def _search_T(method: HasSearchT) -> int | None:
    return method.search_T


_DENSE = {"start": "dense", "allocate": "global"}
ROUNDS = RecipeHints(_DENSE, schedule=_rounds)
ROUNDS_EARLY_TIME = RecipeHints(_DENSE, schedule=_rounds, search_T=_search_T)
SEARCH = RecipeHints(_DENSE, schedule=_looks)
SEARCH_EARLY_TIME = RecipeHints(_DENSE, schedule=_looks, search_T=_search_T)
