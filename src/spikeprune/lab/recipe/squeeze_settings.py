"""The group `squeeze.` of a recipe: how a trained network is cut and re-solved where the method is `squeeze`."""

from dataclasses import dataclass
from typing import final

from spikeprune.core.errors import InvalidValue
from spikeprune.core.schedule import duration
from spikeprune.lab.recipe.validate import Rule, check_fields, key, share, whole
from spikeprune.squeeze.select import ALLOCATIONS, SALIENCIES
from spikeprune.squeeze.settings import WEIGHTINGS, SqueezeSettings

SQUEEZE = "squeeze"
_OWN = SqueezeSettings()
_AT_LEAST_1 = whole(1, 10**9, "a whole number of at least 1")
_NOT_NEGATIVE = Rule("0 or more", lambda value: value >= 0)


@final
@dataclass(frozen=True)
class SqueezeOptions:
    """Settings of `sp.squeeze` beyond the keys that every recipe has, and of the training after it."""

    images: int = key(_OWN.images, "calibration images, drawn from the training split", rule=_AT_LEAST_1)
    allocate: str = key(_OWN.allocate, "how layers share the cut", choices=ALLOCATIONS)
    rounds: int = key(_OWN.rounds, "cuts; what is kept falls in equal ratios", rule=_AT_LEAST_1)
    weighting: str = key(_OWN.weighting, "what weighs the rows of the least squares", choices=WEIGHTINGS)
    saliency: str | None = key(
        _OWN.saliency, f"score of a weight ({', '.join(SALIENCIES)}); null: the one that goes with the weighting"
    )
    solve: bool = key(_OWN.solve, "solve the remaining weights again; false only cuts")
    surrogate: str | None = key(_OWN.surrogate, "curve whose derivative weighs the rows; null: the neuron's own")
    rows: int = key(_OWN.rows, "rows drawn of each layer", rule=_AT_LEAST_1)
    oversample: int = key(
        _OWN.oversample, "rows looked at for each one kept; above 1 rows near the threshold come more often",
        rule=_AT_LEAST_1,
    )  # fmt: skip
    power: float = key(_OWN.power, "exponent of the derivative in the weight of a row", rule=_NOT_NEGATIVE)
    eps: float = key(_OWN.eps, "weight that rows far from the threshold keep", rule=_NOT_NEGATIVE)
    ridge: float = key(_OWN.ridge, "pull towards the dense weights", rule=_NOT_NEGATIVE)
    iterations: int = key(_OWN.iterations, "of conjugate gradients in the last round, in wide layers", rule=_AT_LEAST_1)
    early_iterations: int = key(_OWN.early_iterations, "the same in the rounds before the last", rule=_AT_LEAST_1)
    shift: bool = key(_OWN.shift, "solve a constant per channel too")
    statistics: bool = key(_OWN.statistics, "measure BatchNorm's running statistics again")
    polish: int = key(
        _OWN.polish,
        "passes at the end in which all weights follow the dense network's outputs, without labels",
        rule=whole(0, 10**6, "a whole number of at least 0"),
    )
    tolerance: float | None = key(
        _OWN.tolerance,
        "in place of the sparsity: the highest one at which accuracy on the calibration images falls by at most this",
        rule=share(),
    )
    include: str | None = key(None, "layers that are squeezed, the others stay dense; names or patterns, with spaces")
    masks: str | None = key(None, "a masks.safetensors file: solves for these masks instead of choosing some")
    seed: int | None = key(
        None, "of the calibration images and rows; null: the recipe's", rule=whole(0, 2**63 - 1, "at least 0")
    )
    tune: str = key("0ep", "training at the end with the zeros held; the part of `epochs` before it trains densely")
    targets: str = key(
        "labels",
        "what the training after the squeeze learns from: labels, or the dense network's outputs (no labels needed)",
        choices=("labels", "dense"),
    )

    def __post_init__(self) -> None:
        check_fields(self, "squeeze.")
        try:
            duration(self.tune, 1, 1.0)
        except InvalidValue as error:
            raise InvalidValue(f"squeeze.tune: {error}") from error


def training_method(name: str) -> str:
    """The method that trains: a squeezed network trains densely before the squeeze, and with held zeros after it."""
    return "dense" if name == SQUEEZE else name
