"""One mask update, as `Pruner.rounds` and record.json have it."""

from collections.abc import Mapping
from typing import Self, final

from spikeprune.record.base import Count, Impossible, Record, Share, optional, recorded


@final
@recorded
class LayerRound(Record):
    """One layer, or group of channels, in a mask update: how many are alive after it, how many came back."""

    kept: Count
    regrown: Count


@final
@recorded
class Round(Record):
    """One mask update. Counts are of weights, or of channels where those are pruned.

    Args:
        step: the optimizer step in which it happened.
        target: the sparsity that it was to reach.
        kept: alive after it, regrown ones included.
        regrown: brought back by it.
        rescued: of those that magnitude would newly cut, the number that growth kept.
        survived: of this update's regrown, the number that the next magnitude cut keeps; None until that is known.
        cut: whether the masks were computed anew; a method may let an update pass.
        beyond: how many more than the target it kept (fewer, if below 0), by the rule "authors"; None where counts are
            exact.
        layers: layer, or group of channels -> its own counts; None where that was not recorded.
    """

    step: Count
    target: Share
    cut: bool = True
    kept: Count
    regrown: Count
    rescued: Count
    survived: Count | None
    layers: Mapping[str, LayerRound] | None = optional(default=None)
    beyond: int | None = optional(default=None)

    @classmethod
    def read(cls, values: object, key: str = "") -> Self:
        """Reads an entry.

        Raises: Impossible if more were regrown than kept, more survived than were regrown, or layers do not add up.
        """
        found = super().read(values, key)
        if found.regrown > found.kept:
            raise Impossible(f"{key}.regrown is {found.regrown}, of {found.kept} kept")
        if found.survived is not None and found.survived > found.regrown:
            raise Impossible(f"{key}.survived is {found.survived}, of {found.regrown} regrown")
        if found.layers is not None:
            for what in ("kept", "regrown"):
                said, summed = getattr(found, what), sum(getattr(layer, what) for layer in found.layers.values())
                if said != summed:
                    raise Impossible(f"{key}.{what} is {said}, but its layers add up to {summed}")
        return found
