"""The guard of a Pruner: it sees when model, optimizer or training are no longer those that the Pruner works on."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, final

import torch
from torch import nn

from spikeprune.core.errors import InvalidValue
from spikeprune.core.schedule import MaskUpdate


@final
class Guard:
    """Compares the parameters that a Pruner holds with those that the model has now. No tensor is read."""

    def __init__(self, model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> None:
        self._model, self._parameters = model, parameters
        self._paths = {name: name.split(".") for name in parameters}

    def check(self) -> None:
        """Raises: InvalidValue if the model has another parameter of that name, or none, in place of a held one."""
        for name, path in self._paths.items():
            if self._found(path) is not self._parameters[name]:
                raise InvalidValue(
                    f"the model's {name!r} is no longer the parameter that the Pruner holds (it was assigned, loaded "
                    "with assign=True, or its layer was replaced); copy values into it with load_state_dict, or make "
                    "a new Pruner and optimizer"
                )

    def _found(self, path: Sequence[str]) -> nn.Parameter | None:
        module: nn.Module | None = self._model
        for part in path[:-1]:
            module = None if module is None else module._modules.get(part)
        return None if module is None else module._parameters.get(path[-1])


def hooked(optimizer: Any) -> torch.optim.Optimizer:
    """The optimizer that takes step hooks: the given one, or the one inside of a wrapper such as accelerate's.

    Raises: InvalidValue if there is none.
    """
    inner, seen = optimizer, set[int]()
    while not hasattr(inner, "_optimizer_step_pre_hooks") and id(inner) not in seen:
        seen.add(id(inner))
        inner = vars(inner).get("optimizer", inner) if hasattr(inner, "__dict__") else inner
    if not hasattr(inner, "_optimizer_step_pre_hooks"):
        raise InvalidValue(
            f"{type(optimizer).__name__} takes no step hooks; attach the Pruner to the torch optimizer inside of it, "
            "or call pruner.step(optimizer) after every step"
        )
    return inner


def check_alone(optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter], mine: Any) -> None:
    """Raises: InvalidValue if another Pruner that is attached to the optimizer holds one of the parameters too."""
    held = {id(p) for p in parameters}
    for hook in optimizer._optimizer_step_post_hooks.values():  # pyright: ignore[reportPrivateUsage]
        other: Any = getattr(hook, "__self__", None)
        if type(other) is not type(mine) or other is mine:
            continue
        shared = next((n for n, p in other.space.parts.parameters.items() if id(p) in held), None)
        if shared is not None:
            raise InvalidValue(
                f"another Pruner is attached to this optimizer and prunes {shared!r} too; call its finish(), "
                "or make a new optimizer"
            )


def missing(updates: Sequence[MaskUpdate], done: int) -> str:
    """Which part of a plan was not carried out after `done` steps, in words; empty if all mask updates were made."""
    coming = [update for update in updates if update.step > done]
    if not coming:
        return ""
    return (
        f"{len(coming)} of {len(updates)} mask updates to come, from step {coming[0].step} to {coming[-1].step} "
        f"(asked: sparsity {coming[-1].target:g})"
    )
