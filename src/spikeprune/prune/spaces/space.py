"""The interface of all spaces. A space knows the units that are pruned one by one, and their parameters."""

import abc
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Unpack, final

from torch import Tensor, nn

from spikeprune.core.allocate import kept
from spikeprune.core.evidence import Scores
from spikeprune.core.mask import Outcome
from spikeprune.core.schedule import MaskUpdate
from spikeprune.core.update import Bools, Rules, Target
from spikeprune.model.observer import Observer
from spikeprune.model.trace import Graph
from spikeprune.record.checkpoint import SpaceState
from spikeprune.upkeep.upkeep import Upkeep

Tensors = Mapping[str, Tensor]


@final
@dataclass(frozen=True)
class Parts:
    """The model and the parameters that a space works on.

    Attributes:
        model: the user's.
        parameters: name -> the weights that may be pruned.
        upkeep: holds the masks of the parameters.
        budget, allocate, floor: as for the Pruner.
        frozen: name -> weights that would be prunable, but were not trained when the Pruner was made.
    """

    model: nn.Module
    parameters: Mapping[str, nn.Parameter]
    upkeep: Upkeep
    budget: str = "weights"
    allocate: str = "global"
    floor: float | None = 1
    frozen: Mapping[str, nn.Parameter] = field(default_factory=dict[str, nn.Parameter])


class Space(abc.ABC):
    """The units of a Pruner, as tensors or vectors by name, and how masks of parameters follow from theirs."""

    parts: Parts

    @property
    @abc.abstractmethod
    def known(self) -> bool:
        """Whether the units are known: channels are only after a first forward."""

    @property
    @abc.abstractmethod
    def total(self) -> int:
        """How many units there are; 0 while unknown."""

    @property
    @abc.abstractmethod
    def alive(self) -> dict[str, Tensor]:
        """Name -> bool: which units are alive."""

    @property
    @abc.abstractmethod
    def tracked(self) -> Mapping[str, nn.Parameter]:
        """The parameters whose gradients tell about the units."""

    @abc.abstractmethod
    def learn(self, graph: Graph, most: float) -> None:
        """Takes in the traced model; `most` is the highest sparsity that will be asked for."""

    @abc.abstractmethod
    def weights(self, values: Tensors | None = None) -> dict[str, Tensor]:
        """Name -> the weights that a score reads, from `values` of the parameters or from the present ones."""

    @abc.abstractmethod
    def grads(self, grads: Tensors, values: Tensors) -> dict[str, Tensor]:
        """Name -> gradients with respect to `weights(values)`; `grads` are those of the parameters at `values`."""

    @abc.abstractmethod
    def facts(self, grads: Tensors, before: Tensors) -> dict[str, dict[str, Tensor]] | None:
        """Further statistics of channels that a method may use: kind -> name -> [C]; None for weights.

        Args:
            grads: of the parameters, as far as the method needs them.
            before: the parameters that they belong to.
        """

    @abc.abstractmethod
    def statistics(self, found: Tensors, observer: Observer) -> Tensors:
        """The recorded statistics by unit."""

    @abc.abstractmethod
    def may_regrow(self, observer: Observer) -> set[str]:
        """Names whose units feed a spiking neuron."""

    @abc.abstractmethod
    def target(self, sparsity: float, rates: Tensors, observer: Observer) -> Target:
        """The number of units to keep at a sparsity. `rates`: measured share of non-zero inputs by parameter name."""

    @abc.abstractmethod
    def select(
        self, scores: Scores, regrow_scores: Scores, alive: Bools, target: Target, **rules: Unpack[Rules]
    ) -> Outcome:
        """Chooses the units that one mask update cuts and regrows. `rules` are explained at `prune_and_regrow`."""

    @abc.abstractmethod
    def authors(self, regrow_scores: Scores, sparsity: float, share: float) -> Outcome:
        """Chooses the units of one mask update by the rule of the code of arXiv:2311.16141 (`rule="authors"`)."""

    @abc.abstractmethod
    def masks(self, units: Bools) -> dict[str, Tensor]:
        """Masks of parameters from masks of units."""

    @abc.abstractmethod
    def apply(self, outcome: Outcome, start_value: str, clean: bool) -> None:
        """Makes the parameters follow a mask update: values, masks, and if `clean` the optimizer's state.

        Args:
            start_value: as for `Regrowth`; "exchanged" is "kept" for weights that the cut to the target left.
        """

    @abc.abstractmethod
    def state_dict(self) -> SpaceState:
        """The state that is needed to continue, beside the masks of the parameters."""

    @abc.abstractmethod
    def load_state_dict(self, state: SpaceState) -> None:
        """Restores the state that `state_dict` returned."""

    @abc.abstractmethod
    def unpacked(self, bits: Tensors, state: SpaceState) -> dict[str, Tensor]:
        """The masks of all units from a saved state.

        Args:
            bits: unit -> its mask, packed.
            state: what `state` of this space returned when the masks were saved.
        """

    @abc.abstractmethod
    def hold(self, masks: Tensors) -> None:
        """Take masks of parameters. The upkeep zeroes the weights."""

    @abc.abstractmethod
    def held(self, bits: Tensors) -> dict[str, Tensor]:
        """Unpacks the masks of all parameters that are held."""

    def counted(self, update: MaskUpdate) -> MaskUpdate:
        """A mask update with the number of units it keeps; None while the units are unknown."""
        return replace(update, kept=kept(self.total, update.target) if self.known else None)
