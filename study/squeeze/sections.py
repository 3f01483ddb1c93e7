"""Sections of docs/squeeze.md from the other results: tuning, the frameworks, and where errors fall."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spikeprune.lab.study.significance import summarize

HERE = Path(__file__).parent
PICTURE = "squeeze-tuning.svg"
Line = Mapping[str, Any]
COLOURS = {"squeeze": "#0b6e99", "polished": "#7a4fa3", "magnitude": "#b3541e", "criticality": "#5b8c2a"}
WORDS = {
    "squeeze": "squeeze, then training with its zeros held",
    "polished": "squeeze with images=5000, polish=2, then the same",
    "magnitude": "gradual magnitude pruning",
    "criticality": "gradual pruning, criticality regrowth",
}


def tuning_lines(path: Path = HERE / "tuning.jsonl") -> list[Line]:
    """The trainings that were scored on the test split."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return [x for x in map(json.loads, filter(str.strip, text.splitlines())) if x["split"] == "test"]


def tuning(lines: Sequence[Line]) -> list[str]:
    """A row for each arm and number of epochs."""
    if not lines:
        return []
    rows = []
    for arm, epochs in sorted({(x["arm"], x["epochs"]) for x in lines}, key=lambda k: (list(WORDS).index(k[0]), k[1])):
        mine = [x for x in lines if (x["arm"], x["epochs"]) == (arm, epochs)]
        found = summarize([100 * x["accuracy"] for x in mine])
        half = "" if found.half is None else f" +- {found.half:.2f}"
        seconds, deciding = (summarize([x[key] for x in mine]).mean for key in ("cpu_seconds", "deciding_seconds"))
        rows.append(
            f"| {WORDS[arm]} | {epochs} | {found.mean:.2f}{half} | {seconds:.0f} | {deciding:.0f} | {found.n} |"
        )
    return [
        "## Training after the squeeze",
        "",
        "fashion-small at 95 %, all 10,000 test images. All arms start from the same trained network. An epoch is",
        "6,000 of the 59,000 training images, with labels. Gradual pruning reaches 95 % after 70 % of its steps.",
        "*Until decided* are the CPU seconds until the masks are final. Made by `python study/squeeze/tune.py`.",
        "",
        "| arm | epochs | accuracy, % | CPU seconds | until decided | seeds |",
        "|---|---|---|---|---|---|",
        *rows,
        "",
        "![Accuracy over CPU seconds: the squeeze with 0, 1 and 3 epochs of training, and gradual pruning with 1 to 15 "
        f"epochs.](images/{PICTURE})",
        "",
        *acceleration(lines),
    ]


def acceleration(lines: Sequence[Line]) -> list[str]:
    """The abstract's question: how much sooner is it decided which weights stay, and what do both cost in all?"""

    def mean(arm: str, epochs: int, key: str) -> float | None:
        found = [x[key] for x in lines if (x["arm"], x["epochs"]) == (arm, epochs)]
        return summarize(found).mean if found else None

    said = []
    for own, other in ((1, 1), (1, 5), (1, 10), (3, 3), (3, 15)):
        found = [mean(*arm, key) for arm in (("squeeze", own), ("magnitude", other)) for key in
                 ("deciding_seconds", "cpu_seconds", "accuracy")]  # fmt: skip
        if None not in found:
            a, b, c, x, y, z = (f for f in found if f is not None)
            said.append(
                f"| {own} | {other} | {a:.0f} | {x:.0f} | {x / a:.1f} | {b:.0f} | {y:.0f} | {y / b:.1f} "
                f"| {100 * c:.2f} | {100 * z:.2f} |"
            )
    if not said:
        return []
    return [
        "**In the terms of the paper's abstract**, which calls the time until the structure is decided the cost of",
        "pruning: CPU seconds until it is decided, in all with the training behind it, and the accuracy of both ways.",
        "",
        "| epochs after the squeeze | epochs of gradual pruning | decided: squeeze | gradual | times sooner "
        "| in all: squeeze | gradual | times less | accuracy, %: squeeze | gradual |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *said,
        "",
    ]


def picture(lines: Sequence[Line]) -> str:
    """Accuracy over CPU seconds (logarithmic), a line for each arm."""
    points: dict[str, list[tuple[float, float, int]]] = {}
    for arm, epochs in sorted({(x["arm"], x["epochs"]) for x in lines}):
        mine = [x for x in lines if (x["arm"], x["epochs"]) == (arm, epochs)]
        seconds, accuracy = (summarize([x[key] for x in mine]).mean for key in ("cpu_seconds", "accuracy"))
        points.setdefault(arm, []).append((seconds, 100 * accuracy, epochs))
    from math import floor, log10

    flat = [p for line in points.values() for p in line]
    left, right = log10(min(p[0] for p in flat)) - 0.1, log10(max(p[0] for p in flat)) + 0.15
    low, high = floor(min(p[1] for p in flat)) - 0.5, floor(max(p[1] for p in flat)) + 1.5

    def at(seconds: float, accuracy: float) -> tuple[float, float]:
        return 60 + 560 * (log10(seconds) - left) / (right - left), 300 - 270 * (accuracy - low) / (high - low)

    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 350" font-family="sans-serif" font-size="12" '
        'role="img"><title>Accuracy over CPU seconds</title><rect width="640" height="350" fill="#fff"/>'
    ]
    for tick in range(int(low) + 1, int(high) + 1):
        y = at(1, tick)[1]
        parts.append(
            f'<path d="M60 {y:.1f}H620" stroke="#ddd"/><text x="54" y="{y + 4:.1f}" text-anchor="end">{tick}</text>'
        )
    for tick in (2, 5, 10, 20, 50, 100, 200, 500):
        if left <= log10(tick) <= right:
            x = at(tick, low)[0]
            parts.append(
                f'<path d="M{x:.1f} 300v5" stroke="#555"/><text x="{x:.1f}" y="318" text-anchor="middle">{tick}</text>'
            )
    parts.append('<text x="340" y="340" text-anchor="middle">CPU seconds</text><text x="60" y="18">accuracy, %</text>')
    for number, (arm, line) in enumerate(points.items()):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(s, a) for s, a, _ in line))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{COLOURS[arm]}" stroke-width="2"/>')
        for s, a, epochs in line:
            x, y = at(s, a)
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{COLOURS[arm]}"/>')
            parts.append(
                f'<text x="{x:.1f}" y="{y - 8:.1f}" text-anchor="middle" fill="{COLOURS[arm]}">{epochs}</text>'
            )
        parts.append(f'<text x="340" y="{250 + 16 * number}" fill="{COLOURS[arm]}">{WORDS[arm]}</text>')
    return "".join(parts) + "</svg>\n"


def frameworks(path: Path = HERE / "frameworks.json") -> list[str]:
    """A row for each framework."""
    if not path.is_file():
        return []
    found: dict[str, dict[str, float]] = json.loads(path.read_text(encoding="utf-8"))
    rows = [
        f"| {name} | {x['dense']:.1f} | {x['magnitude']:.1f} | {x['squeezed']:.1f} | {x['training_seconds']:.0f} "
        f"| {x['seconds']:.0f} |"
        for name, x in found.items()
    ]
    return [
        "## Networks of the frameworks' own examples",
        "",
        "Trained on scikit-learn's digits at 28x28, then 90 % of the weights cut with 200 images, one seed, 497 test",
        "images. Made by `python study/squeeze/frameworks.py`; [the guide](guide/squeeze.md) has the scripts.",
        "",
        "| network | dense, % | magnitude alone, % | squeezed, % | training, CPU s | squeeze, CPU s |",
        "|---|---|---|---|---|---|",
        *rows,
        "",
    ]


def why(path: Path = HERE / "why.json") -> list[str]:
    """Errors of the membrane potential by distance to the threshold, and flips seen and predicted."""
    if not path.is_file():
        return []
    found: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    rows = [
        f"| {name} | {number} | "
        + " | ".join("-" if e is None else f"{e:.3f}" for e in layer["error"])
        + f" | {100 * layer['flips']:.2f} | {100 * layer['predicted']:.2f} |"
        for name, layers in found.items()
        for number, layer in enumerate(layers.values(), 1)
    ]
    return [
        "## Where the errors fall",
        "",
        "fashion-small (seed 0) at 95 %, one draw, 500 validation images. u is the dense network's membrane potential",
        "less the threshold, before firing; the error is the mean of |u squeezed - u dense|. *Predicted* is the",
        "density of u at the threshold times the mean error, which holds if the error does not depend on u. Made by",
        "`python study/squeeze/why.py`.",
        "",
        "| method | layer | error at abs(u) < 0.1 | 0.1 to 0.3 | 0.3 to 1 | above 1 | flipped, % | predicted, % |",
        "|---|---|---|---|---|---|---|---|",
        *rows,
        "",
        *_what_moves(found),
    ]


def _what_moves(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Whether criticality moves errors away from the threshold, and whether that saves spikes."""
    if not {"default", "plain energy"} <= found.keys():
        return []
    pairs = [(found["default"][layer], found["plain energy"][layer]) for layer in found["default"]]
    near, far = (sum(a["error"][k] < b["error"][k] for a, b in pairs) for k in (0, 2))
    fewer, n = sum(a["flips"] < b["flips"] for a, b in pairs), len(pairs)
    more = sum(a["flips"] > a["predicted"] for part in found.values() for a in part.values())
    flips = [100 * sum(layer["flips"] for layer in found[name].values()) / n for name in ("default", "plain energy")]
    return [
        "With criticality the error at the threshold (abs(u) < 0.1) is smaller than without it in "
        f"{near} of {n} layers,",
        f"and the error at 0.3 to 1 is smaller in {far} of {n}. Fewer outputs flip in {fewer} of {n} layers (mean",
        f"{flips[0]:.2f} % against {flips[1]:.2f} %). In {more} of {n * len(found)} rows more outputs flip than",
        "predicted, so errors and potentials are not independent.",
        "",
    ]
