"""The size of a compiled file over sparsity, beside bit-packed masks and surviving values, as a Markdown table.

    python benchmarks/sizes.py [--model fashion-conv]

These are one bit for each weight, and 4 bytes (int16: 2, but 4 in the first layer, which reads numbers) for each weight
that is not 0.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from common import SIZES

import spikeprune as sp


def rows(name: str, folder: Path) -> list[str]:
    """A row for each sparsity and precision."""
    found: list[str] = []
    for sparsity in (0.0, 0.8, 0.95, 0.99):
        torch.manual_seed(0)
        model = sp.model(name, size=SIZES[name]).eval()
        if sparsity:
            sp.prune(model, "magnitude", sparsity)
        weights = [p.detach() for p in model.parameters() if p.dim() > 1]
        left = [int((w != 0).sum()) for w in weights]
        for precision, width in (("fp32", 4), ("int16", 2)):
            path = folder / "net.snn"
            sp.compile(model, torch.rand(2, *model.image_shape), precision).save(path)
            bits = sum(w.numel() for w in weights) / 8 if sparsity else 0
            bound = bits + 4 * left[0] + width * sum(left[1:])
            size = path.stat().st_size
            row = (f"{sparsity:.0%}", precision, f"{sum(left):,}", f"{size / 1e3:.1f}", f"{bound / 1e3:.1f}")
            found.append(f"| {' | '.join(row)} | {size / bound:.2f} |")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(SIZES), default="fashion-conv")
    options = parser.parse_args()
    print("| sparsity | weights in | weights that are not 0 | file, kB | bits and values, kB | file / these |")
    print("| --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        print("\n".join(rows(options.model, Path(folder))))


if __name__ == "__main__":
    main()
