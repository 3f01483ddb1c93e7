"""How much faster a pruned network runs when compiled, against the fastest dense opponent on this machine.

    python benchmarks/inference.py [--rows "95 % uniform" ...] [--batches 1 32] [--repeats 5] [--out FILE]

One thread and CPU seconds (the row "all cores": wall clock), medians of interleaved runs in one process; `speedup` is
over the fastest of SpikingJelly eval, our own dense path (BatchNorm folded, channels last, native neurons), ONNX
Runtime and OpenVINO (where installed), all computing the same spikes, which is checked before anything is timed.
Networks are untrained: weights masked, normalisation set so that about a tenth of the neurons fire, as in training.
Rows already in the file are kept. There is no row for `budget="macs"`: ranked so before training, VGG-16 keeps too
little of its first layers to fire; trained.py has trained networks under that budget. Goals: 95 % uniform >= 7x,
98 % >= 12x, int16 >= 9x / 13x (batch 32), 95 % global >= 3x and 60 % of the roofline. The share of the roofline is that
of the fastest repeat, as the peak is that of the fastest of many.
"""

import argparse
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from common import assert_alive, measured, network, one_thread, ranked, uniform
from torch import nn

from spikeprune.runtime import bench
from spikeprune.runtime.compile import compile

ROWS: dict[str, tuple[str, Callable[[nn.Module], Any]]] = {
    "95 % uniform": ("vgg16-weights", uniform(0.95)),
    "98 % uniform": ("vgg16-weights", uniform(0.98)),
    "95 % global": ("vgg16-weights", ranked(0.95, "weights")),
    "95 % uniform, ResNet-19": ("resnet19-weights", uniform(0.95)),
    "95 % uniform, all cores": ("vgg16-weights", uniform(0.95)),
}


def row(title: str, batch: int, repeats: int) -> dict[str, Any]:
    """Every engine at one batch size, the roofline of the compiled one, and what int16 changes."""
    name, prune = ROWS[title]
    model, x = network(name, prune)
    assert_alive(model, x)  # a silent network is fast, and worth nothing
    threads = len(os.sched_getaffinity(0)) if "cores" in title else 1
    result = bench.measure(model, x, batches=[batch], repeats=repeats, threads=threads)
    compiled = compile(model, x[:2])
    entry: dict[str, Any] = {
        "network": name, "masks": title, "batch": batch, "repeats": repeats, "threads": threads,
        "clock": result["clock"], "multiplies_kept": bench.share_of_multiplies(compiled.network),
        "int16_flipped": bench.flipped(compiled, compile(model, x[:2], "int16"), x), "engines": result["rows"],
    }  # fmt: skip
    if threads == 1:
        fastest = next(r["low_ms"] for r in result["rows"] if r["engine"] == "compiled fp32")
        entry["roofline"] = bench.roofline(compiled, fastest, batch)
    return entry


def show(entry: dict[str, Any]) -> None:
    print(f"\n{entry['masks']}, batch {entry['batch']}: {entry['multiplies_kept']:.1%} of the multiplies kept, "
          f"int16 flips {entry['int16_flipped']:.1e} of the spikes")  # fmt: skip
    for r in entry["engines"]:
        speedup = "" if r["speedup"] is None else f"{r['speedup']:.2f}x over {r['opponent']}"
        print(f"  {r['engine']:<16}{r['median_ms']:>10.2f} ms ({r['low_ms']:.2f} to {r['high_ms']:.2f})  {speedup}")
    if "roofline" in entry:
        roof = entry["roofline"]
        print(f"  {roof['peak_adds_per_ns']:.1f} G masked additions/s at best; {roof['share']:.0%} of that, "
              f"{roof['share_of_weights']:.0%} counting one a weight", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 32])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/inference.json"))
    options = parser.parse_args()
    one_thread()
    points = [(title, batch) for title in options.rows for batch in options.batches]
    wanted = [(f"{t}, batch {b}", partial(row, t, b, options.repeats)) for t, b in points]
    for _, entry in measured(options.out, wanted):
        show(entry)


if __name__ == "__main__":
    main()
