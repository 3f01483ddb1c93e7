"""ADMM: pull the weights towards their own sparse projection, then cut what has been pulled to 0."""

from dataclasses import dataclass
from typing import ClassVar, final

from spikeprune.core.errors import InvalidValue
from spikeprune.core.evidence import Evidence, Scores
from spikeprune.methods.base import Method, Training, magnitude
from spikeprune.methods.registry import RecipeHints, register


@register("admm", source="Deng et al. 2021, arXiv:1911.00822", recipe=RecipeHints({"prune.schedule": "constant"}))
@final
@dataclass(frozen=True)
class Admm(Method):
    """Alternate gradient steps on loss + rho/2 |W - Z + U|^2 with projections; cut by |W| at the last mask update.

        in every step    dL/dW += rho * (W - Z + U)
        at every mask update   Z = the largest |W + U| at the final sparsity, 0 elsewhere;  U += W - Z

    with U = 0 and Z the projection of W at first. All weights stay alive up to the last mask update.

    Args:
        rho: how hard W is pulled; W nears Z within about 1 / (lr * rho) steps.
    Source: Deng et al. 2021, arXiv:1911.00822, and their code, which differ: the code adds the norm itself, not its
        square, so that the pull has the same length at any distance. The paper's square is implemented. Their code
        also projects the starting weights in place, so that training begins with the small weights at 0; here W starts
        as it is. The updates of Z and U are equal (tests/authors/admm.py). Its L2 term, the norm too, is the
        optimizer's weight decay here, and the allocation of the recipe stands for the shares that their code sets for
        each layer by hand; rho is ours (their 1e-4 belongs to the other norm and to Adam).

    Examples:
        >>> pruner = sp.Pruner(model, sp.Admm(rho=0.02), sp.Cubic(to=0.75, begin=0, end=6, every=2))
        >>> pruner.attach(optimizer)
        Pruner(...)
        >>> losses = train(6)
        >>> pruner.alive, pruner.prunable
        (192, 768)
    """

    rho: float = 0.01
    acts: ClassVar[bool] = True
    sees_gradients: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.rho > 0:
            raise InvalidValue(f"rho must be above 0, the pull towards the sparse projection, got {self.rho}")

    def before_update(self, training: Training) -> None:
        if not training.memory:
            masks = training.select({name: weight.abs() for name, weight in training.weights.items()})
            training.memory["z"] = {name: weight * masks[name] for name, weight in training.weights.items()}
            training.memory["u"] = {name: weight * 0 for name, weight in training.weights.items()}
        for name, grad in training.grads.items():
            away = training.weights[name] - training.memory["z"][name] + training.memory["u"][name]
            grad += self.rho * away

    def at_event(self, training: Training) -> bool:
        if training.memory:
            u = training.memory["u"]
            summed = {name: weight + u[name] for name, weight in training.weights.items()}
            masks = training.select({name: value.abs() for name, value in summed.items()})
            training.memory["z"] = {name: value * masks[name] for name, value in summed.items()}
            training.memory["u"] = {name: value - training.memory["z"][name] for name, value in summed.items()}
        return training.progress >= 1

    def score(self, evidence: Evidence) -> Scores:
        return magnitude(evidence)
