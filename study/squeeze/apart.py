"""Criticality in the score, the solve and both, on validation images: `python study/squeeze/apart.py --root DATA`.

The table of decision 19 is made of apart.jsonl, to which each squeeze is appended; what is there is not made again.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import run

from spikeprune.lab.train.device import repeatable

RESULTS = Path(__file__).parent / "apart.jsonl"
SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"weighting": "none"},
    {"weighting": "none", "saliency": "critical"},
    {"saliency": "energy"},
    {"eps": 0.3},
    {"eps": 1.0},
)


def jobs() -> Iterator[run.Job]:
    """On images that no published table is scored on."""
    for network, sparsity, draws, images in (
        (run.RESIDUAL, 0.98, (100,), 999),
        (run.FASHION, 0.98, (100, 101), run.HELD_OUT),
        (run.FASHION, 0.95, (100, 101), run.HELD_OUT),
    ):
        for draw in draws:
            for settings in SETTINGS:
                yield run.Job(network, sparsity, draw, settings, "validation", images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, help="folder of the datasets, as for `spikeprune run`")
    root = parser.parse_args().root
    known = {run.key_of(line) for line in run.read(RESULTS)}
    for job in jobs():
        if job.key not in known:
            with repeatable(threads=1):
                line = json.dumps(run.result_of(job, run.data_of(run.card_of(job.network).name, root), None))
            with RESULTS.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
            print(line, flush=True)


if __name__ == "__main__":
    main()
