"""Averaged copies of a model (EMA, SWA) that keep to its masks: an average would fill the zeros again."""

from collections.abc import Callable
from typing import Any, final

from torch import nn

from spikeprune.core.mask import Masks

_UPDATES = ("update_parameters", "update", "set")  # of torch's AveragedModel and of timm's averaged copies


@final
class Follower:
    """Keep an averaged copy at the masks, after each of its updates and before it computes or is saved.

    Hooks on the copy survive neither `copy.deepcopy` nor pickling, so a copy of the copy follows nobody.
    """

    def __init__(self, copy: nn.Module, masks: Callable[[], Masks]) -> None:
        self.copy, self.masks = copy, masks
        masks().apply_(copy)
        for name in _UPDATES:
            if callable(getattr(type(copy), name, None)) and not hasattr(nn.Module, name):
                vars(copy)[name] = _Wrapped(self, name)
        self._handles = [
            copy.register_forward_pre_hook(_Hold(self)),
            copy.register_state_dict_pre_hook(_Hold(self)),
        ]

    def hold(self) -> None:
        """Zeroes what the masks cut now."""
        self.masks().apply_(self.copy)

    def finish(self) -> None:
        """Holds the copy a last time and takes off all that was put on it."""
        self.hold()
        for handle in self._handles:
            handle.remove()
        for name in _UPDATES:
            vars(self.copy).pop(name, None)


@final
class _Hold:
    """A hook of the copy."""

    def __init__(self, follower: Follower | None) -> None:
        self.follower = follower

    def __call__(self, module: nn.Module, *_: Any, **__: Any) -> None:
        if self.follower is not None and module is self.follower.copy:
            self.follower.hold()

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Hold":
        return _Hold(None)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Hold, (None,)


@final
class _Wrapped:
    """An update method of the copy, which holds it afterwards."""

    def __init__(self, follower: Follower, name: str) -> None:
        self.follower, self.name = follower, name

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        result = getattr(type(self.follower.copy), self.name)(self.follower.copy, *args, **keywords)
        self.follower.hold()
        return result

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return getattr(memo.get(id(self.follower.copy), self.follower.copy), self.name)  # the new copy's own method

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self.follower.copy, self.name)
