"""What `sp.squeeze` costs: CPU seconds and memory, of whole networks and of single layers of SEW-ResNet-152.

    python benchmarks/squeeze.py [--only NAME ...]

Whole networks: untrained, T = 4, 128 random images of 32x32, 95 %, 8 rounds, one thread. Goals: VGG-16 in 600 CPU
seconds and 4 GB, ResNet-19 in 900. Single layers: a convolution, BatchNorm and LIF neurons, T = 4, 32 images, spikes of
rate 0.12 as inputs; the sizes are those of the bottleneck blocks of the four stages, whose largest input is 4,608. The
estimate for the whole of SEW-ResNet-152 adds up its 151 convolutions by the nearest measured size. Every row is stored
in benchmarks/results/squeeze.json at once; remove a row to measure it again.
"""

import argparse
import json
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import lively, measured, one_thread
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

import spikeprune as sp

OUT = Path(__file__).parent / "results" / "squeeze.json"
T, IMAGES, SPARSITY = 4, 128, 0.95
NETWORKS = {"VGG-16": "vgg16-weights", "ResNet-19": "resnet19-weights"}
BLOCKS = (3, 8, 36, 3)  # of ResNet-152
STAGES = ((64, 56), (128, 28), (256, 14), (512, 7))  # width of the 3x3 convolution, side of the map


def layers() -> dict[str, tuple[int, int, int, int, int]]:
    """Name -> (inputs, outputs, kernel, side, how many of this size ResNet-152 has)."""
    found: dict[str, tuple[int, int, int, int, int]] = {}
    for blocks, (width, side) in zip(BLOCKS, STAGES, strict=True):
        found[f"1x1, {4 * width} to {width}, {side}x{side}"] = 4 * width, width, 1, side, blocks
        found[f"3x3, {width} to {width}, {side}x{side}"] = width, width, 3, side, blocks
        found[f"1x1, {width} to {4 * width}, {side}x{side}"] = width, 4 * width, 1, side, blocks
    return found


def cost(model: nn.Module, images: list[torch.Tensor]) -> dict[str, Any]:
    """Squeezes and says what it took. The memory is the most that the process ever had."""
    before = time.process_time()
    squeezed = sp.squeeze(model, images, SPARSITY)
    return {
        "cpu_seconds": round(time.process_time() - before, 1),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "weights": squeezed.masks.total,
        "sparsity": squeezed.sparsity,
        "phases": {name: round(seconds, 1) for name, seconds in squeezed.phases.items()},
    }


def network(name: str) -> dict[str, Any]:
    """A network of the zoo."""
    torch.manual_seed(0)
    model = sp.model(name, classes=10, T=T, size=32)
    images = torch.rand(IMAGES, 3, 32, 32)
    lively(model, images[:8])
    return cost(model.eval(), list(images.split(32)))


def single(inputs: int, outputs: int, kernel: int, side: int) -> dict[str, Any]:
    """One layer between its inputs and its neurons."""
    torch.manual_seed(0)
    model = nn.Sequential(
        layer.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False), layer.BatchNorm2d(outputs),
        neuron.LIFNode(v_threshold=0.5),
    )  # fmt: skip
    functional.set_step_mode(model, "m")
    spikes = [(torch.rand(T, 8, inputs, side, side) < 0.12).float() for _ in range(4)]
    with torch.no_grad():
        model.train()
        model(spikes[0])
    functional.reset_net(model)
    return cost(model.eval(), spikes)


def rows() -> list[tuple[str, Callable[[], dict[str, Any]]]]:
    """All rows by name."""
    found: list[tuple[str, Callable[[], dict[str, Any]]]] = []
    for name, (*size, _) in layers().items():
        found.append((name, lambda size=size: single(*size)))
    return found + [(name, lambda model=model: network(model)) for name, model in NETWORKS.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", help="rows whose name has one of these in it")
    given = parser.parse_args()
    one_thread()
    wanted = [(n, make) for n, make in rows() if not given.only or any(word in n for word in given.only)]
    for name, row in measured(OUT, wanted):
        print(name, json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
