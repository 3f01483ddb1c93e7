"""One call in place of a Pruner: `sp.prune` cuts once, with no training around it; `sp.hold` only keeps zeros."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from spikeprune.core.errors import InvalidValue
from spikeprune.core.mask import Masks
from spikeprune.core.schedule import Constant, OneShot
from spikeprune.methods.base import Method
from spikeprune.methods.dense import Dense
from spikeprune.prune.pruner import Pruner
from spikeprune.upkeep.given import Given, masks_of


def prune(
    model: nn.Module,
    method: Method | str,
    sparsity: float = 0.9,
    data: Iterable[Any] | None = None,
    loss: Callable[[Any, Any], Tensor] | None = None,
    **pruner_keywords: Any,
) -> Masks:
    """One shot, no training loop: prunes the model in place and returns the masks.

    Args:
        model: its weights outside the masks become 0; train or eval mode and all else stay.
        sparsity: share of the prunable weights to cut.
        data: batches for methods that need evidence: inputs, or (input, target) pairs; fed as they are.
        loss: loss(output, target), for methods that need gradients.
        pruner_keywords: as for `Pruner` (allocate, pattern, budget, include, exclude, floor, seed).
    Raises: MissingEvidence if the method needs data or a loss that is not given.

    Examples:
        >>> masks = sp.prune(model, "magnitude", 0.75)
        >>> masks.alive, masks.total
        (192, 768)
    """
    pruner = Pruner(model, method, OneShot(sparsity), **pruner_keywords)
    pruner.observe(data, loss)
    pruner.cut()
    pruner.finish()
    return pruner.masks


def hold(model: nn.Module, masks: Given = "zeros") -> Pruner:
    """Keeps the zeros of a sparse network through training, after `attach`. There are no mask updates.

    Args:
        model: the user's. Weights outside the masks become 0 at once.
        masks: "zeros", the weights that are exactly 0 now; a mapping as `pruner.masks`; or a masks.safetensors path.
            A regrown weight that has not moved yet is 0 as well: give the masks where that matters.
    Raises: UserError if there is no zero to hold, or the masks are not of this network.

    Examples:
        >>> masks = sp.prune(model, "magnitude", 0.75)
        >>> held = sp.hold(model)
        >>> held.attach(optimizer)
        Pruner(...)
        >>> losses = train(3)
        >>> held.alive
        192
    """
    given = masks_of(model, masks)
    if given.alive == given.total:
        raise InvalidValue(
            f"{type(model).__name__} has no zero to hold: every weight is alive; prune it first, or pass its masks="
        )
    return Pruner(model, Dense(), Constant(given.sparsity), masks=given)
