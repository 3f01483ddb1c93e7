"""The settings of a squeeze, checked when they are made."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, final

from torch import Tensor

from spikeprune.core.errors import InvalidValue, unknown
from spikeprune.core.pattern import nm_pattern
from spikeprune.core.surrogate import curve_named
from spikeprune.count.costs import BUDGETS
from spikeprune.methods.base import check_choice, is_number
from spikeprune.model.prunable import Names
from spikeprune.squeeze.select import ALLOCATIONS, SALIENCIES

_SCORES = {"criticality": "critical", "none": "energy", "membrane": "obs"}  # the saliency of each weighting
WEIGHTINGS = tuple(_SCORES)


@final
@dataclass(frozen=True)
class SqueezeSettings:
    """See `squeeze` for what each one means.

    Raises: InvalidValue or UnknownName for a value outside what is allowed.
    """

    sparsity: float = 0.95
    masks: Mapping[str, Tensor] | None = None
    tolerance: float | None = None
    images: int = 500
    budget: str = "weights"
    pattern: str = "weight"
    allocate: str = "lamp"
    rounds: int = 8
    weighting: Literal["criticality", "none", "membrane"] = "criticality"
    saliency: str | None = None
    solve: bool = True
    surrogate: str | None = None
    rows: int = 4000
    oversample: int = 1
    power: float = 1.0
    eps: float = 0.02
    ridge: float = 1e-2
    iterations: int = 24
    early_iterations: int = 4
    shift: bool = False
    statistics: bool = True
    polish: int = 0
    include: Names = None
    exclude: Names = None
    floor: float = 1
    seed: int = 0
    progress: bool = False

    def __post_init__(self) -> None:
        if not (is_number(self.sparsity) and 0 <= self.sparsity < 1):
            raise InvalidValue(f"sparsity must be in [0, 1), got {self.sparsity}; for 95 % pass 0.95")
        if self.tolerance is not None and not 0 <= self.tolerance < 1:
            raise InvalidValue(
                f"tolerance must be in [0, 1), got {self.tolerance}; for one point of accuracy pass 0.01"
            )
        if self.tolerance is not None and self.masks is not None:
            raise InvalidValue(
                "masks= fixes which weights are kept, so tolerance= has nothing to search; give one of them"
            )
        if self.tolerance is not None and self.pattern != "weight":
            raise InvalidValue(f"tolerance= takes pattern='weight', whose sparsity can be any, not {self.pattern!r}")
        check_choice("weighting", self.weighting, WEIGHTINGS)
        for setting, value, names in (
            ("budget", self.budget, BUDGETS),
            ("allocation", self.allocate, ALLOCATIONS),
            ("saliency", self.score, SALIENCIES),
        ):
            if value not in names:
                raise unknown(setting, value, names)
        for setting, whole, least in (
            ("rounds", self.rounds, 1),
            ("rows", self.rows, 1),
            ("oversample", self.oversample, 1),
            ("iterations", self.iterations, 1),
            ("early_iterations", self.early_iterations, 1),
            ("polish", self.polish, 0),
        ):
            if not is_number(whole, whole=True) or whole < least:
                raise InvalidValue(f"{setting} must be a whole number of at least {least}, got {whole}")
        for setting, number in (("power", self.power), ("eps", self.eps), ("ridge", self.ridge)):
            if not (math.isfinite(number) and number >= 0):
                raise InvalidValue(f"{setting} must be a finite number of 0 or more, got {number}")
        if self.oversample > 1 and self.weighting != "criticality":
            raise InvalidValue(
                f"oversample={self.oversample} draws rows by their criticality, which weighting={self.weighting!r} "
                "does not measure; leave oversample at 1"
            )
        if self.surrogate is not None:
            curve_named(self.surrogate)
        self._check_pattern()

    def _check_pattern(self) -> None:
        nm = nm_pattern(self.pattern)
        if self.pattern == "gate":
            raise InvalidValue(
                "squeeze takes pattern='weight', 'channel' or n:m such as '2:4', got 'gate'; 'channel' cuts whole "
                "channels"
            )
        if self.pattern == "channel":
            return
        if self.budget != "weights" and self.allocate not in ("global", "lamp", "energy"):
            raise InvalidValue(
                f"budget={self.budget!r} ranks all layers together; take allocate='lamp', 'energy' or 'global', "
                f"not {self.allocate!r}"
            )
        if nm is None or self.masks is not None:
            return
        if self.budget != "weights" or self.allocate in ("erk", "neuron"):
            raise InvalidValue(
                f"pattern {self.pattern!r} fixes what every layer keeps: take budget='weights' and allocate='lamp', "
                f"'global' or 'uniform'; got {self.budget!r}, {self.allocate!r}"
            )
        if 0 < self.sparsity < 1 - nm[0] / nm[1]:
            raise InvalidValue(
                f"pattern {self.pattern!r} keeps at most {nm[0]} of {nm[1]} weights, so the sparsity must be at least "
                f"{1 - nm[0] / nm[1]:g}, got {self.sparsity}"
            )

    @property
    def score(self) -> str:
        """The saliency: as given, or the one that goes with the weighting."""
        if self.saliency is not None:
            return self.saliency
        return _SCORES[self.weighting]
