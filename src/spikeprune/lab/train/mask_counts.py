"""Whether the masks of a run folder keep as many weights, or channels, as its record says."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from spikeprune.core.errors import UserError
from spikeprune.record.run import ChannelsRecord, RunRecord


def check_counts(masks: Mapping[str, Tensor], record: RunRecord, path: Path) -> None:
    """Raises: UserError if masks are missing, or keep another number than the record says."""
    wrong = _of_weights(masks, record) if record.channels is None else _of_channels(masks, record, record.channels)
    if wrong is not None:
        raise UserError(f"{path} {wrong}; restore the masks and record.json from one run, or run again")


def _of_weights(masks: Mapping[str, Tensor], record: RunRecord) -> str | None:
    weights = [mask for mask in masks.values() if mask.dim() > 1]  # held biases are not counted
    alive, total = sum(int(mask.sum()) for mask in weights), sum(mask.numel() for mask in weights)
    if (alive, total) == (record.pruned.alive, record.dense.alive):
        return None
    return f"keeps {alive} of {total} weights, and record.json says {record.pruned.alive} of {record.dense.alive}"


def _of_channels(masks: Mapping[str, Tensor], record: RunRecord, channels: ChannelsRecord) -> str | None:
    """The layer that a group is named after loses the outputs of its cut channels; a gate may have no mask there."""
    cut = {name: counts for name, counts in channels.groups.items() if counts[1] < counts[0]}
    for name, (before, after) in cut.items() if record.settings.pattern == "channel" else ():
        own = [mask for n, mask in masks.items() if n == name or n.startswith(f"{name}.")]
        if all(bool(mask.all()) for mask in own):
            found = "cuts nothing" if own else "has no mask"
            return f"{found} of {name[:60]!r}, and record.json says that {after} of its {before} channels are alive"
    if cut and all(bool(mask.all()) for mask in masks.values()):
        return f"cuts nothing, and record.json says that {channels.after} of {channels.before} channels are alive"
    return None
