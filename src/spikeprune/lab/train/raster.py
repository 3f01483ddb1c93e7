"""The spikes of one image for the report: some neurons of each layer, dense and squeezed."""

from collections.abc import Mapping

import torch
from torch import Tensor

from spikeprune.core.errors import UserError
from spikeprune.core.mask import pack
from spikeprune.lab.train.folder import RunFolder
from spikeprune.lab.train.network import TimedNetwork
from spikeprune.record.schema import SCHEMA
from spikeprune.record.spikes import SpikesRecord
from spikeprune.record.squeeze import RasterRows
from spikeprune.squeeze.certificate import fingerprint

# Neurons of a layer that are shown, and layers: more cannot be told apart on a page.
_SHOWN, _LAYERS = 96, 24


def raster(before: Mapping[str, Tensor], after: Mapping[str, Tensor], T: int, images: int) -> dict[str, RasterRows]:
    """Neuron -> its rows, of the first of the images; neurons that do not see every step and image are left out.

    Args:
        before, after: neuron -> bool, flat [T * images * neurons], dense and squeezed.
    """
    rows: dict[str, RasterRows] = {}
    for name, dense in before.items():
        if name not in after or dense.numel() % (T * images) or dense.numel() == 0:
            continue
        one, two = (spikes.view(T, images, -1)[:, 0] for spikes in (dense, after[name]))
        neurons = one.shape[1]
        shown = min(_SHOWN, neurons)
        chosen = torch.linspace(0, neurons - 1, shown).round().long()
        rows[name] = RasterRows(
            T=T, neurons=neurons, shown=shown, dense=_hex(one[:, chosen]), pruned=_hex(two[:, chosen])
        )
    return dict(list(rows.items())[:_LAYERS])


def _hex(spikes: Tensor) -> str:
    return pack(spikes).numpy().tobytes().hex()


def spikes_of(network: TimedNetwork, images: Tensor, recorded: bool) -> dict[str, Tensor]:
    """Neuron -> bool, flat [T * images * neurons]; empty where the model cannot be traced, which fails no run."""
    x = network.fed(images, recorded)
    try:
        with network.one_call(recorded) as model:
            return dict(fingerprint(model, x, network.adapter).spikes)
    except UserError:
        return {}


def save_spikes(folder: RunFolder, dense: TimedNetwork, pruned: TimedNetwork, images: Tensor, recorded: bool) -> None:
    """Writes spikes.json of the first test image; nothing where no spikes can be told.

    Args:
        images: a few of the test images, [N, C, H, W], or [T, N, C, H, W] where recorded.
    """
    before, after = (spikes_of(network, images, recorded) for network in (dense, pruned))
    T = images.shape[0] if recorded else pruned.T
    rows = raster(before, after, T, images.shape[1 if recorded else 0])
    if rows:
        folder.save_spikes(SpikesRecord(schema=SCHEMA, rows=rows))
