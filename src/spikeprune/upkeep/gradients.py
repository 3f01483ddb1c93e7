"""Gradients and their derivative, kept up to the mask update, with the weights that they belong to."""

from collections.abc import Callable, Mapping
from typing import final

from torch import Tensor, nn

from spikeprune.core.errors import MissingEvidence


@final
class KeptGradients:
    """Gradients of all weights, dead ones too, from one backward pass up to the mask update that reads them.

    Attributes:
        before: parameter name -> the weights before the step's update; empty if the gradients belong to the present.
    """

    def __init__(self) -> None:
        self.before: dict[str, Tensor] = {}
        self._values: dict[str, Tensor] = {}
        self._summed = False

    @property
    def empty(self) -> bool:
        """Whether nothing is kept."""
        return not self._values

    def keep(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Copies the present gradients and weights."""
        self._values = {n: p.grad.clone() for n, p in parameters.items() if p.grad is not None}
        self._summed = False
        self.before = {n: p.detach().clone() for n, p in parameters.items()}

    def take(self, values: Mapping[str, Tensor]) -> None:
        """Takes gradients of the present weights, summed over batches by the caller."""
        self._values, self._summed = dict(values), False

    def summed(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """Parameter name -> gradient, summed over ranks by `reduce`. A second call returns the same sums."""
        if not self._summed:
            self._values = {n: reduce(g) for n, g in self._values.items()}
            self._summed = True
        return self._values

    def forget(self) -> None:
        """Drops all, after the mask update or with a step that was skipped."""
        self._values, self.before, self._summed = {}, {}, False


@final
class KeptCurvature:
    """The loss's Hessian times its gradient, from `observe` up to the mask update that reads it.

    Attributes:
        before: parameter name -> the weights that the product was computed at.
    """

    def __init__(self) -> None:
        self.before: dict[str, Tensor] = {}
        self._products: dict[str, Tensor] = {}
        self._steps = 0

    def take(self, products: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> None:
        """Takes products that belong to the present parameters."""
        self._products, self._steps = dict(products), 0
        self.before = {n: parameters[n].detach().clone() for n in products}

    def complete_step(self) -> None:
        """Called when an optimizer has changed the weights: the products get one step older."""
        self._steps += 1

    def shown(self, method: str, step: int) -> dict[str, Tensor]:
        """Parameter name -> the product.

        Raises: MissingEvidence if there is none, or if it belongs to weights of earlier steps.
        """
        if self._products and self._steps <= 1:
            return self._products
        since = f"batches were last observed {self._steps} steps ago" if self._products else "no batch was observed"
        raise MissingEvidence(
            f"{method} needs the loss's curvature, which training does not show, and at step {step} {since}; call "
            "pruner.observe(data, loss) right before the step of a mask update, or prune before training: sp.prune"
        )

    def forget(self) -> None:
        """Drops all, after the mask update."""
        self._products, self.before, self._steps = {}, {}, 0
