"""Hooks of ours on a user's module, which do not go along into copies of the module."""

from collections.abc import Callable
from typing import Any, final

from torch import nn


@final
class OwnHook:
    """A hook that calls a function. A copy of its module (deep, or pickled by torch.save) gets a `GoneHook` instead.

    So a model can be copied and saved while statistics are recorded, and the copy holds nothing of the recording.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        return self.function(*args, **keywords)

    def __deepcopy__(self, memo: dict[int, Any]) -> "GoneHook":
        return GoneHook()

    def __reduce__(self) -> tuple[Any, ...]:
        return GoneHook, ()


@final
class GoneHook:
    """The hook of a copied module in place of an `OwnHook`: it does nothing, and removes itself at its first call."""

    def __call__(self, module: nn.Module, *_: Any) -> None:
        for hooks in (module._forward_hooks, module._forward_pre_hooks):  # pyright: ignore[reportPrivateUsage]
            for key in [key for key, hook in hooks.items() if hook is self]:
                del hooks[key]
