"""How much of its saved multiplies a shrunk VGG-16 turns into time, in plain SpikingJelly and through `sp.compile`.

    python benchmarks/shrink.py [--repeats 7] [--batches 32 1] [--shares 0.5 0.3] [--T 5] [--out FILE]

One thread, CPU seconds, medians of interleaved runs in one process, so that a busy machine slows all alike; only ratios
are worth quoting. The share of the MAC ratio is (dense time / small time) / (dense MACs / small MACs), dense and small
both plain or both compiled. Goals at batch 32: plain 0.65 with half of the channels and 0.45 with 30 % (the elementwise
part shrinks only linearly), compiled 0.9 with either.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import keep, lively, machine, one_thread
from torch import Tensor, nn

from spikeprune.count.costs import network_cost
from spikeprune.model.adapter import adapter_for
from spikeprune.model.channel_values import channel_masks
from spikeprune.model.groups import channel_groups
from spikeprune.model.trace import trace
from spikeprune.runtime.bench import assert_same_spikes
from spikeprune.runtime.compile import compile
from spikeprune.shrink.shrink import shrink
from spikeprune.zoo.registry import build


def plain(model: nn.Module) -> Callable[[Tensor], Any]:
    adapter = adapter_for(model)

    def run(x: Tensor) -> None:
        adapter.reset(model)
        with torch.no_grad():
            model(x)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 1])
    parser.add_argument("--shares", type=float, nargs="+", default=[0.5, 0.3], help="of the channels kept, per layer")
    parser.add_argument("--T", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/shrink.json"))
    arguments = parser.parse_args()
    one_thread()
    torch.manual_seed(0)
    found: dict[str, Any] = {"machine": machine(), "repeats": arguments.repeats, "T": arguments.T, "rows": []}
    print(f"{found['machine']['cpu']} ({' '.join(found['machine']['flags'])})", flush=True)

    dense = build("vgg16-channels", T=arguments.T)
    example = torch.rand(8, 3, 32, 32)
    lively(dense, example)
    graph = trace(dense, example[:1], adapter=adapter_for(dense))
    groups = channel_groups(graph, dense)
    cost = network_cost("macs", groups, dense, graph)
    everything = {g.name: torch.ones(g.channels, dtype=torch.bool) for g in groups}
    models = {"dense": (dense, cost(everything))}
    for share in arguments.shares:
        keep_these = {g.name: torch.randperm(g.channels) < round(share * g.channels) for g in groups}
        small, _ = shrink(dense, channel_masks(groups, keep_these, dense), example[:1])
        # Fewer inputs add up to less: without its own statistics the small network would be silent, and compile would
        # owe its speed to that.
        lively(small, example)
        models[f"{share:g}"] = (small, cost(keep_these))

    for batch in arguments.batches:
        x = torch.rand(batch, 3, 32, 32)
        runners: dict[tuple[str, str], Callable[[Tensor], Any]] = {}
        for name, (model, _) in models.items():
            compiled = compile(model, example[:2])
            assert_same_spikes(model, compiled, x)
            runners["plain", name], runners["compiled", name] = plain(model), compiled
        times: dict[tuple[str, str], list[float]] = {key: [] for key in runners}
        for run in runners.values():
            run(x)
        for _ in range(arguments.repeats):
            for key, run in runners.items():
                started = time.process_time()
                run(x)
                times[key].append(time.process_time() - started)
        middle = {key: statistics.median(values) for key, values in times.items()}
        for (how, name), seconds in middle.items():
            ratios = [a / b for a, b in zip(times[how, "dense"], times[how, name], strict=True)]
            speed_up, saved = statistics.median(ratios), models["dense"][1] / models[name][1]
            row = {
                "batch": batch, "through": how, "channels": name, "ms": 1000 * seconds, "speed_up": speed_up,
                "mac_ratio": saved, "share_of_mac_ratio": speed_up / saved,
            }  # fmt: skip
            found["rows"].append(row)
            print(
                f"batch {batch:<3} {how:<9} channels {name:<6}{row['ms']:>9.1f} ms {speed_up:>6.2f}x "
                f"of {saved:.2f}x fewer MACs: {row['share_of_mac_ratio']:.2f}",
                flush=True,
            )
        keep(arguments.out, found)


if __name__ == "__main__":
    main()
