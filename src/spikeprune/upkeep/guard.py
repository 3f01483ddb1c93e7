"""The guard of a Pruner: it sees when model or training are no longer those that the Pruner works on."""

from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor, nn

from spikeprune.core.errors import InvalidValue
from spikeprune.core.mask import count
from spikeprune.core.schedule import MaskUpdate

_MOSTLY = 0.5  # zeros among the alive weights from here on are those of a sparse network


@final
class Guard:
    """Compares the parameters that a Pruner holds with those that the model has now.

    Args:
        frozen: layers' weights that were not trained when the Pruner was made, so that it leaves them alone.
    """

    def __init__(
        self, model: nn.Module, parameters: Mapping[str, nn.Parameter], frozen: Mapping[str, nn.Parameter]
    ) -> None:
        self._model, self._parameters, self._frozen = model, parameters, frozen
        self._paths = {name: name.split(".") for name in parameters}
        self._versions: dict[str, int] = {}

    def check(self) -> None:
        """Reads no tensor.

        Raises: InvalidValue if the model has another parameter of that name, or none, in place of a held one.
        """
        for name, path in self._paths.items():
            if self._found(path) is not self._parameters[name]:
                raise InvalidValue(self._replaced(name))

    def check_frozen(self) -> None:
        """Raises: InvalidValue if a weight that was frozen when the Pruner was made is trained now."""
        for name, parameter in self._frozen.items():
            if parameter.requires_grad:
                raise InvalidValue(
                    f"{name!r} was frozen when the Pruner was made and is trained now, so it would stay dense; make a "
                    f"new Pruner after unfreezing (masks=pruner.masks keeps the zeros), or pass exclude=[{name!r}]"
                )

    def check_trained(self) -> None:
        """Checks, before a mask update, that all weights that it may cut are still trained.

        Raises: InvalidValue if one is frozen by now.
        """
        name = next((name for name, p in self._parameters.items() if not p.requires_grad), None)
        if name is not None:
            raise InvalidValue(
                f"{name!r} is frozen now, and the mask update of this step would still cut it; unfreeze it, or make a "
                f"new Pruner with masks=pruner.masks and exclude=[{name!r}]"
            )

    def _replaced(self, name: str) -> str:
        mine = self._parameters[name]
        other = next((n for n, p in self._model.named_parameters() if p is mine), None)
        if other is not None:
            return (
                f"the parameter {name!r} of the model is now called {other!r} (a parametrisation was registered?), so "
                "its mask would have a wrong name; register it before the Pruner is made"
            )
        return (
            f"the model's {name!r} is no longer the parameter that the Pruner holds (it was assigned, loaded "
            "with assign=True, or its layer was replaced); copy values into it with load_state_dict, or make "
            "a new Pruner and optimizer"
        )

    def _found(self, path: Sequence[str]) -> nn.Parameter | None:
        module: nn.Module | None = self._model
        for part in path[:-1]:
            module = None if module is None else module._modules.get(part)
        return None if module is None else module._parameters.get(path[-1])

    # ---- zeros ----------------------------------------------------------------------------------------------------

    def note(self) -> None:
        """The dead weights are 0 now: what is written into a weight from here on is seen by its version."""
        self._versions = {name: p._version for name, p in self._parameters.items()}

    @property
    def written(self) -> bool:
        """Whether somebody else has written into a weight. Writes through `.data` do not show."""
        return any(self._parameters[name]._version != version for name, version in self._versions.items())

    def unheld(self, masks: Mapping[str, Tensor]) -> str:
        """A warning of zeros that no mask holds; empty if fewer than half of the alive weights are 0."""
        alive = {
            n: masks[n] if n in masks else torch.ones_like(p, dtype=torch.bool) for n, p in self._parameters.items()
        }
        total, zeros = count(alive), count({n: (p == 0) & alive[n] for n, p in self._parameters.items()})
        if not total or zeros / total < _MOSTLY:
            return ""
        return (
            f"{zeros} of {total} weights that are alive for the Pruner are exactly 0, and training fills them again; "
            "a Pruner with masks='zeros' and sp.hold(model) keep them"
        )

    def check_zeros(self, masks: Mapping[str, Tensor]) -> None:
        """Raises: InvalidValue if a dead weight is not 0."""
        held = {n: p.detach() for n, p in self._parameters.items() if n in masks}
        name = next((n for n, value in held.items() if bool((value != 0).gt(masks[n]).any())), None)
        if name is not None:
            revived = {n: (value != 0).gt(masks[n]) for n, value in held.items()}
            raise InvalidValue(
                f"{count(revived)} dead weights are not 0, the first in {name!r}: somebody wrote them since the last "
                "step (a checkpoint of before a mask update?); load that moment's pruner state too, or call "
                "pruner.masks.apply_(model)"
            )


def missing(updates: Sequence[MaskUpdate], done: int) -> str:
    """The mask updates of a plan that are missing after `done` steps, in words. Empty if all were made."""
    coming = [update for update in updates if update.step > done]
    if not coming:
        return ""
    return (
        f"{len(coming)} of {len(updates)} mask updates to come, from step {coming[0].step} to {coming[-1].step} "
        f"(asked: sparsity {coming[-1].target:g})"
    )
