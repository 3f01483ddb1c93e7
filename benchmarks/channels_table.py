"""The table of structured pruning on Fashion-MNIST: channels cut, with and without regeneration, beside dense.

    python benchmarks/channels_table.py [--out runs/channels] [--seeds 0 1 2] [--write docs/results/channels.md]

Each row is the recipe `fashion-channels` (`spikeprune run fashion-channels --key value ...`): pretrain with L1 on the
BatchNorm scales, prune by the training images, shrink, fine-tune; as many epochs in all as the dense network. Half (or
70 %) of the channels go; a fifth of the kept ones is regrown by criticality, at random, or not at all. Every number is
the last epoch's, on the whole test split, scored once. Runs stand in --out: what is there is not trained again, and a
run that was stopped goes on where it was. About 20 minutes of two quiet CPU cores.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

from spikeprune.lab.recipe import load
from spikeprune.lab.train.run import run

_METHODS = {"magnitude": "none (BatchNorm scale alone)", "criticality": "criticality", "random": "random"}


def record_of(out: Path, *overrides: str) -> dict[str, Any]:
    """The record of one run, trained now unless it is there."""
    began = time.perf_counter()
    recipe = load("fashion-channels", ["--out", str(out), *overrides])
    record = run(recipe).read_record()
    print(
        " ".join(overrides), f"{record['pruned']['accuracy']:.4f}", f"{time.perf_counter() - began:.0f} s", flush=True
    )
    return record


def table(out: Path, seeds: list[int], sparsities: list[float]) -> str:
    dense: dict[int, dict[str, Any]] = {}
    cut: dict[tuple[float, str], dict[int, dict[str, Any]]] = {}
    for seed in seeds:
        common = ("--seed", str(seed), "--baseline", "false")
        plain = ("--pattern", "weight", "--prune.finetune", "null", "--optim.slim", "0")
        dense[seed] = record_of(out, *common, "--method", "dense", *plain, "--prune.end", "1ep")
        for sparsity in sparsities:
            for method in _METHODS:
                chosen = ("--method", method, "--sparsity", str(sparsity))
                cut.setdefault((sparsity, method), {})[seed] = record_of(out, *common, *chosen)
    base = {seed: record["pruned"]["accuracy"] for seed, record in dense.items()}
    first = dense[seeds[0]]
    settings, spread = first["settings"], _mean(list(base.values()))
    lines = [
        "# Channels on Fashion-MNIST",
        "",
        f"`{settings['model']}` ({first['pruned']['parameters']:,} parameters), T={settings['T']}, "
        f"{first['data']['counts']['train']:,} training and {first['data']['counts']['test']:,} test images, "
        f"{settings['epochs']} epochs for every row; seeds {', '.join(map(str, seeds))}; mean and standard deviation. "
        "Made by `python benchmarks/channels_table.py`; points are differences to the dense network of the same seed.",
        "",
        "| cut | regrown by | accuracy | points below dense | before fine-tuning | parameters | MACs | SynOps |",
        "|---|---|---|---|---|---|---|---|",
        f"| 0 | dense | {spread} | | | {first['pruned']['parameters']:,} | {_millions(dense, 'macs')} | "
        f"{_millions(dense, 'synops')} |",
    ]
    for (sparsity, method), records in cut.items():
        accuracy = [record["pruned"]["accuracy"] for record in records.values()]
        below = [100 * (base[seed] - record["pruned"]["accuracy"]) for seed, record in records.items()]
        before = [record["stages"]["pruned"] for record in records.values()]
        size = statistics.mean(record["pruned"]["parameters"] for record in records.values())
        lines.append(
            f"| {sparsity:.0%} | {_METHODS[method]} | {_mean(accuracy)} | {statistics.mean(below):.2f} "
            f"(worst {max(below):.2f}) | {_mean(before)} | {size:,.0f} | {_millions(records, 'macs')} | "
            f"{_millions(records, 'synops')} |"
        )
    seconds = sum(r["cost"]["seconds"] for r in [*dense.values(), *(r for each in cut.values() for r in each.values())])
    environment = first["environment"]
    lines += [
        "",
        f"Training took {seconds / 60:.0f} minutes in all, one run after the other, on {environment['device']} with "
        f"{environment['threads']} thread(s), shared with other work; {environment['precision']}, "
        f"torch {environment['versions']['torch']}.",
    ]
    return "\n".join(lines) + "\n"


def _mean(values: list[float]) -> str:
    deviation = f" ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.2f}{deviation} %"


def _millions(records: dict[int, dict[str, Any]], key: str) -> str:
    return f"{statistics.mean(record['pruned'][key] for record in records.values()) / 1e6:.2f} M"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/channels"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.5, 0.7])
    parser.add_argument("--write", type=Path, help="a Markdown file for the table")
    arguments = parser.parse_args()
    text = table(arguments.out, arguments.seeds, arguments.sparsities)
    print(text)
    if arguments.write:
        arguments.write.parent.mkdir(parents=True, exist_ok=True)
        arguments.write.write_text(text)


if __name__ == "__main__":
    main()
