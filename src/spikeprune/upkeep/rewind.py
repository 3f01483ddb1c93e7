"""Rewinding: after a cut the network goes back to what it was early in training, and learns again."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from spikeprune.core.errors import InvalidValue
from spikeprune.record.checkpoint import RewindState
from spikeprune.upkeep.upkeep import Upkeep


class Rewind:
    """The point to go back to: every parameter and buffer of the model as it was after step `begin`.

    Attributes:
        since: the step of the last rewind, 0 before the first.
    """

    def __init__(self, model: nn.Module, begin: int) -> None:
        self._model = model
        self._begin = begin
        self._point: dict[str, Tensor] = {}
        self.since = 0
        self.keep(0)

    @property
    def point(self) -> Mapping[str, Tensor]:
        """The values that `go` restores: parameter or buffer name -> tensor. Do not write into them."""
        return self._point

    def keep(self, step: int) -> None:
        """Store the point if this is its step (0: before the first step)."""
        if step == self._begin:
            self._point = {name: value.detach().clone() for name, value in self._model.state_dict().items()}

    @torch.no_grad()
    def go(self, step: int, upkeep: Upkeep) -> None:
        """Go back to the point with the present masks and an empty optimizer state."""
        for name, value in self._model.state_dict().items():
            value.copy_(self._point[name])
        upkeep.hold()
        for optimizer in upkeep.optimizers:
            optimizer.state.clear()
        self.since = step

    def state_dict(self) -> RewindState:
        """The point and where the present round began."""
        return {"since": self.since, "point": dict(self._point)}

    def load_state_dict(self, state: RewindState | None) -> None:
        """Restores the state that `state_dict` returned."""
        now = self._model.state_dict()
        try:
            if state is None:
                raise KeyError("point")
            self._point = {name: value.to(now[name].device) for name, value in state["point"].items()}
            self.since = int(state["since"])
        except (KeyError, TypeError, AttributeError) as error:
            raise InvalidValue(
                f"the saved point to go back to is damaged or of another network ({error!r:.80}); make the model alike"
            ) from error
