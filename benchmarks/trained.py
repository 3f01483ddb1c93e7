"""What trained networks give: accuracy beside speed, under both budgets, and what int16 costs.

    python benchmarks/trained.py [--runs "digits weights" ...] [--out FILE]

Trains each run with `spikeprune run` (seed 0, the recipe's own settings but those shown), then times it with
`spikeprune bench` on one thread. Fashion-MNIST is read from SPIKEPRUNE_DATA. Runs already in the file are kept.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from common import measured, one_thread

FASHION = ["fashion", "--data.limit", "6000", "--epochs", "4", "--precision", "fp32"]
RUNS = {
    "digits, 95 % of the weights": ["digits", "--precision", "fp32"],
    "digits, 95 % of the multiplies": ["digits", "--precision", "fp32", "--budget", "macs", "--baseline", "false"],
    "fashion (6,000 images), 95 % of the weights": FASHION,
    "fashion (6,000 images), 95 % of the multiplies": [*FASHION, "--budget", "macs", "--baseline", "false"],
}


def row(words: list[str]) -> dict[str, Any]:
    """Trains and times one network, in processes of their own."""
    command = [sys.executable, "-m", "spikeprune"]
    with tempfile.TemporaryDirectory() as out:
        subprocess.run([*command, "run", *words, "--out", out], check=True, stdout=subprocess.DEVNULL)
        (folder,) = Path(out).iterdir()
        record = json.loads((folder / "record.json").read_text())
        timed = subprocess.run(
            [*command, "bench", str(folder), "--threads", "1", "--json"], check=True, capture_output=True, text=True
        )
    result = json.loads(timed.stdout)
    return {
        "command": " ".join(["spikeprune", "run", *words]), "model": record["settings"]["model"],
        "sparsity": record["sparsity"], "dense_accuracy": record["dense"]["accuracy"],
        **{key: result[key] for key in ("accuracy", "multiplies_kept", "int16_flipped", "repeats", "timings")},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="+", default=list(RUNS), choices=list(RUNS))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/trained.json"))
    options = parser.parse_args()
    one_thread()
    for title, found_row in measured(options.out, ((title, partial(row, RUNS[title])) for title in options.runs)):
        print(f"{title} ({found_row['model']}, sparsity {found_row['sparsity']:.4f}, "
              f"{found_row['multiplies_kept']:.1%} of the multiplies kept)")  # fmt: skip
        print("  " + ", ".join(f"{engine} {share:.2%}" for engine, share in found_row["accuracy"].items()))
        for entry in found_row["timings"][0]["rows"]:
            if entry["speedup"] is not None:
                print(f"  batch {entry['batch']:<3} {entry['engine']:<15} {entry['median_ms']:.3f} ms, "
                      f"{entry['speedup']:.2f}x over {entry['opponent']}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
