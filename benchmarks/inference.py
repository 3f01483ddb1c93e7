"""How much faster a pruned network runs when compiled, against the fastest dense opponent on this machine.

    python benchmarks/inference.py [--rows uniform global macs sweep wall] [--batches 1 32] [--repeats 5] [--json FILE]

One thread and CPU seconds unless said, medians of interleaved runs in one process; `speedup` is over the fastest of
SpikingJelly eval, our own dense path, ONNX Runtime and OpenVINO (where installed), all computing the same spikes.
Networks are untrained: weights masked, normalisation set so that about a tenth of the neurons fire, as in training.
Goals: 95 % uniform >= 7x, 98 % >= 12x, int16 >= 9x / 13x (batch 32), 95 % global >= 3x and 60 % of the roofline;
the sweep over zoo networks and sparsities: geometric mean >= 0.95 of dense, no row under 0.90.
"""

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import spikeprune as sp
from spikeprune.pruner.adapter import adapter_for
from spikeprune.runtime import bench
from spikeprune.runtime.compile import CompiledSNN, compile

SIZES = {"digits-conv": 8, "mlp": 8, "fashion-conv": 28, "fashion-conv-large": 28}


def lively(model: nn.Module, x: Tensor) -> None:
    """Sets BatchNorm from batches of images and shifts it down, so that about a tenth of the neurons fire."""
    adapter = adapter_for(model)
    model.train()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    threshold = 0.6 if any(n.v_threshold == 0.5 for n in adapter.neurons(model).values()) else 0.2  # type: ignore[union-attr]
    for norm in norms:
        norm.momentum = 0.7
        nn.init.constant_(norm.bias, -threshold)
    for _ in range(12):
        adapter.reset(model)
        with torch.no_grad():
            model(x)
    adapter.reset(model)
    model.eval()


def network(name: str, prune: Callable[[nn.Module], Any]) -> tuple[nn.Module, Tensor]:
    """A pruned zoo network at T=5 in eval mode, and images for it."""
    torch.manual_seed(0)
    size = SIZES.get(name, 32)
    model = sp.model(name, classes=10, T=5, size=size)
    x = torch.rand(8, 1 if name in SIZES else 3, size, size)
    prune(model)
    lively(model, x)
    return model, x


def uniform(sparsity: float) -> Callable[[nn.Module], None]:
    """Cuts the smallest weights of every layer."""

    def prune(model: nn.Module) -> None:
        for parameter in model.parameters():
            if parameter.dim() > 1 and sparsity > 0:
                size = parameter.abs().flatten()
                cut = size.kthvalue(max(1, math.floor(sparsity * size.numel()))).values
                parameter.data *= parameter.abs() > cut

    return prune


def ranked(sparsity: float, budget: str) -> Callable[[nn.Module], Any]:
    """The library's own one-shot magnitude pruning, ranked over all layers."""
    return lambda model: sp.prune(model, "magnitude", sparsity=sparsity, data=[torch.rand(2, 3, 32, 32)], budget=budget)


def show(title: str, result: dict[str, Any], compiled: CompiledSNN | None = None) -> None:
    print(f"\n{title} | {result['clock']} time, {result['threads']} thread(s)")
    if compiled is not None:
        print(f"  share of multiplies kept: {bench.share_of_multiplies(compiled.network):.4f}")
    print(f"  {'batch':>5}  {'engine':<16}{'median ms':>10}{'low':>9}{'high':>9}{'images/s':>10}{'speedup':>9}  over")
    for row in result["rows"]:
        speedup = "" if row["speedup"] is None else f"{row['speedup']:.2f}x"
        print(
            f"  {row['batch']:>5}  {row['engine']:<16}{row['median_ms']:>10.2f}{row['low_ms']:>9.2f}"
            f"{row['high_ms']:>9.2f}{row['images_per_s']:>10.1f}{speedup:>9}  {row['opponent'] or ''}"
        )
        if compiled is not None and row["engine"] == "compiled fp32":
            roof = bench.roofline(compiled, row["low_ms"], row["batch"])
            row["roofline"] = roof
            print(
                f"         roofline: {roof['peak_adds_per_ns']:.1f} G masked adds/s at best, share {roof['share']:.0%}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=["uniform", "global", "macs", "resnet", "sweep", "wall"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 32])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sparsities", nargs="+", type=float, default=[0.0, 0.5, 0.8, 0.9, 0.95, 0.99])
    parser.add_argument("--networks", nargs="+", default=sp.models())
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    common: dict[str, Any] = {"batches": options.batches, "repeats": options.repeats}
    everything: dict[str, Any] = {}

    cases: dict[str, list[tuple[str, str, Callable[[nn.Module], Any]]]] = {
        "uniform": [(f"VGG-16 uniform {s}", "vgg16-weights", uniform(s)) for s in (0.95, 0.98)],
        "global": [(f"VGG-16 global {s}", "vgg16-weights", ranked(s, "weights")) for s in (0.95,)],
        "macs": [(f"VGG-16 budget=macs {s}", "vgg16-weights", ranked(s, "macs")) for s in (0.95,)],
        "resnet": [(f"ResNet-19 uniform {s}", "resnet19-weights", uniform(s)) for s in (0.95,)],
    }
    for group in options.rows:
        for title, name, prune in cases.get(group, []):
            model, x = network(name, prune)
            everything[title] = result = bench.measure(model, x, **common)
            if len(everything) == 1:
                print(f"{result['cpu']} | {' '.join(result['flags'])} | kernels: {result['isa']}")
            compiled = compile(model, x[:2])
            show(title, result, compiled)
            lost = bench.flipped(compiled, compile(model, x[:2], "int16"), x)
            print(f"  int16 changes {lost:.1e} of all spikes")
    if "sweep" in options.rows:
        ratios: list[float] = []
        for name in options.networks:
            for sparsity in options.sparsities:
                model, x = network(name, uniform(sparsity))
                result = bench.measure(model, x, **common, int16=False, opponents=False)
                everything[f"sweep {name} {sparsity}"] = result
                for row in result["rows"]:
                    if row["engine"] == "compiled fp32":
                        ratios.append(row["speedup"])
                        print(f"sweep {name:<20} sparsity {sparsity:<5} batch {row['batch']:<3} {row['speedup']:.2f}x")
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        print(f"sweep: geometric mean {mean:.2f}, lowest {min(ratios):.2f}, over {len(ratios)} rows")
    if "wall" in options.rows:
        model, x = network("vgg16-weights", uniform(0.95))
        threads = torch.multiprocessing.cpu_count()
        everything["wall"] = bench.measure(model, x, **common, threads=threads, int16=False)
        show("VGG-16 uniform 0.95, all cores", everything["wall"])
    if options.json:
        options.json.write_text(json.dumps(everything, indent=1))


if __name__ == "__main__":
    main()
