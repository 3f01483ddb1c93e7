"""Where a squeezed network errs: `python study/squeeze/why.py --root DATA`; results in study/squeeze/why.json.

For each neuron layer of fashion-small at 95 %, on 500 validation images: u = v_pre - v_threshold of the dense network,
the error du of the squeezed one, the mean |du| by distance |u| from the threshold, the share of outputs that flip, and
the share that the density of u at 0 predicts, f(0) * mean |du|, were du independent of u.
"""

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import torch
from run import FASHION, calibration
from torch import Tensor, nn

import spikeprune as sp
from spikeprune.data import batches
from spikeprune.integrations.spikingjelly import SpikingJelly
from spikeprune.lab.train.pretrained import data_of

RESULTS = Path(__file__).parent / "why.json"
EDGES = (0.0, 0.1, 0.3, 1.0, float("inf"))  # distances from the threshold
NEAR = 0.1
SETTINGS: dict[str, dict[str, Any]] = {"default": {}, "plain energy": {"weighting": "none"}}


def potentials(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Neuron name -> u = v_pre - v_threshold on these images, flat."""
    adapter, found = SpikingJelly(), dict[str, Tensor]()
    handles = []
    for name, neuron in adapter.neurons(model).items():

        def keep(neuron: nn.Module, args: tuple[Any, ...], name: str = name) -> None:
            found[name] = torch.cat([u.detach().flatten() for u in adapter.potentials(neuron, args)])

        handles.append(neuron.register_forward_pre_hook(keep))
    with torch.no_grad():
        adapter.reset(model)
        model(x)
        adapter.reset(model)
    for handle in handles:
        handle.remove()
    return found


def compared(u: Tensor, other: Tensor) -> dict[str, Any]:
    """The errors of one layer."""
    off, distance = (other - u).abs(), u.abs()
    bins = [off[(distance >= a) & (distance < b)] for a, b in itertools.pairwise(EDGES)]
    density = float((distance < NEAR).double().mean()) / (2 * NEAR)
    return {
        "error": [float(part.double().mean()) if len(part) else None for part in bins],
        "flips": float(((u >= 0) != (other >= 0)).double().mean()),
        "predicted": density * float(off.double().mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, help="folder of the datasets")
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = data_of(FASHION, given.root)
    assert data.validation is not None
    images = torch.cat([x for x, _ in batches(data, "validation", 250)][:2])
    dense = potentials(sp.pretrained(FASHION), images)
    found: dict[str, dict[str, Any]] = {}
    for name, settings in SETTINGS.items():
        model = sp.pretrained(FASHION)
        sp.squeeze(model, calibration(data, 0, 500), 0.95, **settings)
        now = potentials(model, images)
        found[name] = {layer: compared(dense[layer], now[layer]) for layer in dense}
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
