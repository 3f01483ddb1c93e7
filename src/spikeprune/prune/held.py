"""Zeros that stay: masks of a network that is sparse already, held through any training, or in one small file."""

from pathlib import Path

from torch import Tensor, nn

from spikeprune.core.errors import InvalidValue
from spikeprune.core.mask import Masks
from spikeprune.core.schedule import Constant
from spikeprune.methods.dense import Dense
from spikeprune.model.wrappers import eager
from spikeprune.prune.given import Given, masks_of
from spikeprune.prune.pruner import Pruner
from spikeprune.record.packed import read_packed, write_packed


def hold(model: nn.Module, masks: Given = "zeros") -> Pruner:
    """Keeps the zeros of a sparse network through training, after `attach`. There are no mask updates.

    Args:
        model: the user's. Weights outside the masks become 0 at once.
        masks: "zeros", the weights that are exactly 0 now; a mapping as `pruner.masks`; or a masks.safetensors path.
            A regrown weight that has not moved yet is 0 as well: give the masks where that matters.
    Raises: UserError if there is no zero to hold, or the masks are not of this network.
    """
    given = masks_of(model, masks)
    if given.alive == given.total:
        raise InvalidValue(
            f"{type(model).__name__} has no zero to hold: every weight is alive; prune it first, or pass its masks="
        )
    return Pruner(model, Dense(), Constant(given.sparsity), masks=given)


def save_packed(model: nn.Module, path: str | Path, masks: Given = "zeros") -> None:
    """Writes a sparse network as one safetensors file: a bit for every masked weight, and the values that are alive.

    Args:
        model: its state_dict is saved, buffers too.
        path: the file, written whole or not at all.
        masks: as for `hold`. Weights that do not obey them are refused.
    Raises: UserError if masks and weights do not agree, or the file cannot be written.
    """
    write_packed(Path(path), eager(model).state_dict(), masks_of(model, masks), {})


def load_packed(path: str | Path) -> tuple[dict[str, Tensor], Masks]:
    """The state_dict and the masks of a file that `save_packed` (or `spikeprune export --to safetensors`) wrote.

    Raises: UserError if the file is missing, damaged or of another kind.
    """
    state, masks = read_packed(path)
    return state, Masks(masks)
