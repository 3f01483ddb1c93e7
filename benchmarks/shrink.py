"""How much of its saved multiplies a shrunk VGG-16 turns into time, in plain SpikingJelly.

    python benchmarks/shrink.py [--repeats 7] [--batches 32 1] [--shares 0.5 0.3] [--T 5]

One thread, CPU seconds (`time.process_time`), medians of interleaved runs in one process, so that a busy machine slows
both alike; only ratios are worth quoting. The share of the MAC ratio is (dense time / small time) / (dense MACs /
small MACs). Goals: 0.65 with half of the channels and 0.45 with 30 % (the elementwise part shrinks only linearly).
"""

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import torch
from spikingjelly.activation_based import functional
from torch import Tensor, nn

from spikeprune.pruner.adapter import find_adapter
from spikeprune.pruner.channels import channel_masks, network_cost
from spikeprune.pruner.groups import channel_groups
from spikeprune.pruner.trace import trace
from spikeprune.shrink.shrink import shrink
from spikeprune.zoo.registry import build


def cpu() -> str:
    """The processor's name and the vector extensions that matter here."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    table = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = [flag for flag in table.get("flags", "").split() if flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16")]
    return f"{table.get('model name', platform.machine())} ({', '.join(flags)})"


def lively(model: nn.Module) -> None:
    """Normalisations that let every layer fire, as in a trained network."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.8, 2.5)
            nn.init.normal_(module.bias, 0.2, 0.3)


def seconds(model: nn.Module, x: Tensor) -> float:
    functional.reset_net(model)
    started = time.process_time()
    with torch.no_grad():
        model(x)
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 1])
    parser.add_argument("--shares", type=float, nargs="+", default=[0.5, 0.3], help="of the channels kept, per layer")
    parser.add_argument("--T", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"{cpu()}, torch {torch.__version__}, one thread, T={arguments.T}, median of {arguments.repeats}", flush=True)

    dense = build("vgg16-channels", T=arguments.T)
    lively(dense)
    dense.eval()
    example = torch.randn(1, 3, 32, 32)
    graph = trace(dense, example, adapter=find_adapter(dense))
    groups = channel_groups(graph, dense)
    cost = network_cost("macs", groups, dense, graph)
    everything = {g.name: torch.ones(g.channels, dtype=torch.bool) for g in groups}
    models = {"dense": (dense, cost(everything))}
    for share in arguments.shares:
        keep = {g.name: torch.randperm(g.channels) < round(share * g.channels) for g in groups}
        small, _ = shrink(dense, channel_masks(groups, keep, dense), example)
        models[f"{share:g}"] = (small, cost(keep))

    for batch in arguments.batches:
        x = torch.randn(batch, 3, 32, 32)
        times: dict[str, list[float]] = {name: [] for name in models}
        for model, _ in models.values():
            seconds(model, x)
        for _ in range(arguments.repeats):
            for name, (model, _) in models.items():
                times[name].append(seconds(model, x))
        middle = {name: statistics.median(values) for name, values in times.items()}
        for name, (_, macs) in models.items():
            speed_up, saved = middle["dense"] / middle[name], models["dense"][1] / macs
            row = {
                "batch": batch,
                "channels": name,
                "ms": round(1000 * middle[name], 1),
                "speed_up": round(speed_up, 2),
                "mac_ratio": round(saved, 2),
                "share_of_mac_ratio": round(speed_up / saved, 3),
            }
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
