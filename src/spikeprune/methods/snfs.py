"""SNFS (sparse momentum): the optimizer's momentum says where to grow, and which layers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from spikeprune.core.evidence import Evidence, Scores
from spikeprune.core.schedule import Schedule
from spikeprune.methods.base import Method, Regrowth, magnitude
from spikeprune.methods.registry import RecipeHints, register


@register(
    "snfs",
    source="Dettmers and Zettlemoyer 2019, arXiv:1907.04840",
    recipe=RecipeHints(
        {
            "regrow": 0.5,
            "regrow_schedule": "decay",
            "start": "random",
            "allocate": "global",
            "prune.schedule": "constant",
        }
    ),
)
@final
@dataclass(frozen=True)
class Snfs(Method):
    """Drop the smallest weights of each layer; grow the largest momentum, in layers with the largest mean momentum.

        score = |w|,  regrow_score = |m|,  layer l gets mean(|m| of its alive weights) / (sum of these means) of all

    m is the momentum buffer of SGD, or the ratio of Adam's moments. The method needs m of dead weights too, so their
    gradients flow into the optimizer's state (`Regrowth(momentum="warm")`). Dead weights are exactly 0; their momentum
    is not. Where an optimizer has no momentum (yet), m is the gradient of the mask update's step.

    Args:
        regrow: share of each layer's weights that the first mask update drops; it falls to 0 as a cosine. The authors
            start at 0.5 too.
        start_value: "kept", as in the authors' code: a weight that one mask update drops and grows keeps its value.
    Source: Dettmers and Zettlemoyer 2019, arXiv:1907.04840, and their code. Here counts are exact (theirs carry
        rounding errors over to the next mask update), a layer may fill up completely (theirs to 99 %), and nearly dense
        layers drop the same share as others (theirs drop less).

    Examples:
        >>> pruner = sp.Pruner(model, sp.Snfs(regrow=0.3), sp.Constant(0.75, begin=0, end=6, every=2), start="random")
        >>> pruner.attach(optimizer)
        Pruner(...)
        >>> losses = train(6)
        >>> pruner.alive, pruner.prunable
        (192, 768)
    """

    regrow: float | Schedule = 0.5
    start_value: str = "kept"
    needs: ClassVar[frozenset[str]] = frozenset({"weights", "grads", "state"})
    regrows: ClassVar[bool] = True
    within_layers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self.regrowth()

    def regrowth(self) -> Regrowth:
        return Regrowth(self.regrow, momentum="warm", start_value=self.start_value)

    def score(self, evidence: Evidence) -> Scores:
        return magnitude(evidence)

    def regrow_score(self, evidence: Evidence) -> Scores:
        state = evidence.state or {}
        return {name: _momentum(state.get(name, {}), grad).abs() for name, grad in evidence.gradients().items()}

    def growth(self, evidence: Evidence) -> dict[str, float]:
        means = {
            name: float(score[evidence.masks[name]].mean()) if bool(evidence.masks[name].any()) else 0.0
            for name, score in self.regrow_score(evidence).items()
        }
        total = sum(means.values())
        return {name: mean / total if total > 0 else 1 / len(means) for name, mean in means.items()}


def _momentum(state: Mapping[str, Tensor], grad: Tensor) -> Tensor:
    if "exp_avg" in state:
        return state["exp_avg"] / (state["exp_avg_sq"].sqrt() + 1e-8)
    return state.get("momentum_buffer", grad)
