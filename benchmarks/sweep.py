"""Is a compiled network ever slower than the dense one? Every zoo network at several sparsities and batch sizes.

    python benchmarks/sweep.py [--networks NAME ...] [--sparsities 0 0.5 ...] [--batches 1 32] [--out FILE]

Uniform magnitude masks. The opponent is the faster of SpikingJelly eval and our own dense path; one thread, CPU
seconds, medians of interleaved repeats in one process. Rows already in the file are kept, so that a run that was
stopped goes on; a row whose repeat takes about `--long` seconds or more gets 3 repeats instead of 5, and says so.
Goals: geometric mean >= 0.95 of dense over all rows, no row under 0.90.
"""

import argparse
import math
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import measured, network, one_thread, stored, uniform

import spikeprune as sp
from spikeprune.model.adapter import adapter_for
from spikeprune.runtime import bench


def row(name: str, sparsity: float, batch: int, long: float) -> dict[str, Any]:
    """One measured row; `repeats` says how often."""
    model, x = network(name, uniform(sparsity))
    start = time.process_time()
    with torch.no_grad():
        model(x[torch.arange(batch) % len(x)])
    adapter_for(model).reset(model)
    # Our dense path takes about as long; the compiled network at most that.
    repeats = 3 if 3 * (time.process_time() - start) > long else 5
    result = bench.measure(model, x, batches=[batch], repeats=repeats, int16=False, opponents=False)
    times = {entry["engine"]: entry["median_ms"] for entry in result["rows"]}
    ours = next(entry for entry in result["rows"] if entry["engine"] == "compiled fp32")
    return {
        "network": name, "sparsity": sparsity, "batch": batch, "repeats": repeats, "speedup": ours["speedup"],
        "opponent": ours["opponent"], "ms": times,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=sp.models())
    parser.add_argument("--sparsities", nargs="+", type=float, default=[0.0, 0.5, 0.8, 0.9, 0.95, 0.99])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 32])
    parser.add_argument("--long", type=float, default=5.0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/sweep.json"))
    options = parser.parse_args()
    one_thread()
    # Small networks and batches first, so that a run that is stopped has covered the most.
    points = [(n, s, b) for b in options.batches for n in options.networks for s in options.sparsities]
    wanted = [(f"{n} {s:g} {b}", partial(row, n, s, b, options.long)) for n, s, b in points]
    for _, entry in measured(options.out, wanted):
        print(f"{entry['network']:<20} sparsity {entry['sparsity']:<5g} batch {entry['batch']:<3} "
              f"{entry['speedup']:.2f}x", flush=True)  # fmt: skip
    ratios = [entry["speedup"] for entry in stored(options.out)["rows"].values()]
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
    print(f"geometric mean {mean:.2f}, lowest {min(ratios):.2f}, over {len(ratios)} rows")


if __name__ == "__main__":
    main()
