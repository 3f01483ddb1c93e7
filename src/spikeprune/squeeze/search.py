"""The highest sparsity that a tolerance allows."""

from collections.abc import Callable

from torch import Tensor

from spikeprune.count.sensitivity import accuracy
from spikeprune.squeeze.batches import Batches
from spikeprune.squeeze.network import Network
from spikeprune.squeeze.statistics import Spikes, watch_spikes

_OCTAVES = 8  # from all weights down to 1 of 256
_TRIALS = 7


def highest(passes: Callable[[float], bool]) -> float:
    """The highest sparsity 1 - 2^-k at which `passes` holds, k in steps of 1/16; 0 if none is found.

    A bisection of k in [0, 8]: it takes for granted that what passes at a sparsity passes at every lower one.
    """
    low, high = 0, _OCTAVES * 2 ** (_TRIALS - 3)
    while high - low > 1:
        middle = (low + high) // 2
        if passes(_sparsity(middle)):
            low = middle
        else:
            high = middle
    return _sparsity(low)


def _sparsity(k: int) -> float:
    return 1 - 2.0 ** (-k / 2 ** (_TRIALS - 3))


def judge_of(network: Network, batches: Batches, before: Spikes) -> Callable[[], float]:
    """A function that judges the present model: accuracy if every batch has labels, else agreement with `before`."""
    pairs = [(x, y) for x, y in zip(batches.inputs, batches.targets, strict=True) if _is_label(y)]
    if len(pairs) == len(batches.inputs):
        return lambda: accuracy(network.model, pairs)

    def agreement() -> float:
        after = watch_spikes(network.model, network.adapter, network.graph, batches.inputs)
        equal = [before.against(after, name)[0] for name in before.calls]
        return sum(equal) / len(equal) if equal else 1.0

    return agreement


def _is_label(target: object) -> bool:
    return isinstance(target, Tensor) and target.ndim == 1 and not target.is_floating_point()
