"""What of the study could not be run, with its hours and with what a GPU would add, from study/results/hours.txt.

The hours are estimates of `spikeprune sweep --dry-run`, which times a few steps of each kind of run.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

# What each part would tell. A part without an entry asks what its heading in the page, or its file, says.
ADDS = {
    "recovery": "whether the constant share still costs after 12 turnovers, on Fashion-MNIST",
    "deep_more": "the order of the arms at 98 and 90 %",
    "deep_channels": "channels of the deep networks at 50 %",
    "deep_channels_more": "channels at 30 and 70 %",
    "deep_cifar100": "a second data set for the deep networks",
    "deep_steps": "five time steps, as in the paper",
    "deep_cost": "seconds to the masks on the deep networks; IMP with whole rounds takes most of it",
    "deep_rules": "criticality by layer, CH3-L3 and critical energy on the deep networks",
    "deep_gpu": "whole CIFAR-10 at 32x32, ten epochs, and a learning rate for each arm",
    "deep_channels_gpu": "the same for channels",
    "ablations": "the settings of criticality one by one",
    "time_steps": "the same arms at other T",
    "rivals": "other published methods on the small network",
    "lottery": "IMP and Early-Bird at larger budgets",
}
_UNITS = {"s": 1 / 3600, "min": 1 / 60, "h": 1.0}


def section(done: Iterable[str], hours: Mapping[str, str]) -> list[str]:
    """The parts without results as Markdown; empty if there are none."""
    left = {name: said for name, said in hours.items() if name not in set(done)}
    if not left:
        return []
    total = sum(filter(None, (hours_of(said) for said in left.values())))
    return [
        "## What could not be run",
        "",
        "Times are those that `spikeprune sweep --dry-run` estimates for one core of that machine. "
        f"Together they are {total:.0f} hours.",
        "",
        *(f"- {name}: {said}{_tells(name)}" for name, said in left.items()),
        "",
        "A GPU would add what no core here can: the paper's networks at full width, T = 5 and hundreds of epochs. The "
        "`paper-*` recipes are ready for it. A regrown weight would then have 17.5 turnovers after the last mask "
        "update, as in the authors' recipe, in place of fewer than one in the deep networks here.",
        "",
    ]


def _tells(name: str) -> str:
    return f". It would tell: {ADDS[name]}." if name in ADDS else ""


def hours_of(said: str) -> float | None:
    """The hours in `30 runs, 30 to make: about 22.3 h ...`; None if there are none."""
    match = re.search(r"about ([\d.]+) (s|min|h)\b", said)
    return float(match[1]) * _UNITS[match[2]] if match else None


def read(file: Path) -> dict[str, str]:
    """Part -> what the estimate said."""
    if not file.is_file():
        return {}
    lines = [line.partition(": ") for line in file.read_text(encoding="utf-8").splitlines() if line]
    return {name: said for name, _, said in lines}
