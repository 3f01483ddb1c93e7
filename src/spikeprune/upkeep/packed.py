"""A sparse network in one small file: the values that are alive, and a bit for every masked weight."""

from pathlib import Path

from torch import Tensor, nn

from spikeprune.core.mask import Masks
from spikeprune.model.wrappers import eager
from spikeprune.record.packed import read_packed, write_packed
from spikeprune.upkeep.given import Given, masks_of


def save_packed(model: nn.Module, path: str | Path, masks: Given = "zeros") -> None:
    """Writes a sparse network as one safetensors file: a bit for every masked weight, and the values that are alive.

    Args:
        model: its state_dict is saved, buffers too.
        path: the file, written whole or not at all.
        masks: as for `hold`. Weights that do not obey them are refused.
    Raises: UserError if masks and weights do not agree, or the file cannot be written.

    Examples:
        >>> masks = sp.prune(model, "magnitude", 0.75)
        >>> sp.save_packed(model, "net.safetensors", masks)
    """
    write_packed(Path(path), eager(model).state_dict(), masks_of(model, masks), {})


def load_packed(path: str | Path) -> tuple[dict[str, Tensor], Masks]:
    """The state_dict and the masks of a file that `save_packed` (or `spikeprune export --to safetensors`) wrote.

    Raises: UserError if the file is missing, damaged or of another kind.

    Examples:
        >>> masks = sp.prune(model, "magnitude", 0.75)
        >>> sp.save_packed(model, "net.safetensors", masks)
        >>> state, again = sp.load_packed("net.safetensors")
        >>> again.alive
        192
    """
    state, masks = read_packed(path)
    return state, Masks(masks)
