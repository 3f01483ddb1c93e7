"""One mask update, as `Pruner.rounds` and record.json have it."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, NoReturn, final

from spikeprune.record.entry import Count, Entry, Share, optional


@dataclass(frozen=True, eq=False, repr=False)
class Keyed(Entry, dict[str, object]):
    """An entry that is also a dict of its fields, so that `entry["kept"]`, `dict(entry)` and `json.dumps(entry)` work.

    It compares and prints as that dict. Neither a field nor a key can be set: `dataclasses.replace` makes another one.
    Abstract.
    """

    def __post_init__(self) -> None:
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "extra"}
        optionals = {f.name for f in fields(self) if "optional" in f.metadata}
        kept = {name: value for name, value in values.items() if value is not None or name not in optionals}
        dict.update(self, kept | dict(self.extra))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).read, (self.as_dict(),)

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} is a record and stays as it is; dict(...) gives a copy to change")

    __setitem__ = __delitem__ = update = pop = popitem = clear = setdefault = __ior__ = _refuse  # pyright: ignore


@final
@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class LayerRound(Keyed):
    """One layer, or group of channels, in a mask update: how many are alive after it, how many came back."""

    kept: Count
    regrown: Count


@final
@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Round(Keyed):
    """One mask update. Counts are of weights, or of channels where those are pruned.

    Args:
        step: the optimizer step in which it happened.
        target: the sparsity that it was to reach.
        kept: alive after it, regrown ones included.
        regrown: brought back by it.
        rescued: of those that magnitude would newly cut, the number that growth kept.
        survived: of this update's regrown, the number that the next magnitude cut keeps; None until that is known.
        cut: whether the masks were computed anew; a method may let an update pass.
        layers: layer, or group of channels -> its own counts; None where that was not recorded.
    """

    step: Count
    target: Share
    cut: bool = True
    kept: Count
    regrown: Count
    rescued: Count
    survived: Count | None
    layers: Mapping[str, LayerRound] | None = optional()
