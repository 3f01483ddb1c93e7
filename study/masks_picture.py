"""Makes docs/images/masks.svg, the moving picture of the README: `python study/masks_picture.py`.

A small network learns digits and is pruned by magnitude with regrowth by criticality. Each frame is the mask of one
convolution after a mask update: a row is an output channel, a square a weight. Blue weights stayed, orange ones came
back in this update, grey squares are cut.
"""

import itertools
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import spikeprune as sp
from spikeprune.data import batches
from spikeprune.lab.recipe import load
from spikeprune.lab.train.parts import load_data, make_network

PLACE = Path(__file__).parents[1] / "docs" / "images" / "masks.svg"
LAYER = "body.2.weight"
CELL, SECONDS = 6, 9
STYLE = """.f { opacity: 0; animation: show %(seconds)ds steps(1) infinite; }
.dead { fill: #8884; } .alive { fill: #0b7a75; }
.back { fill: #e07b2e; } text { font: 13px system-ui, sans-serif; fill: #777; }
@keyframes show { 0%% { opacity: 1; } %(share).3f%% { opacity: 0; } 100%% { opacity: 0; } }
@media (prefers-color-scheme: dark) { .alive { fill: #3cc4b8; } .back { fill: #f59a57; } text { fill: #aaa; } }
@media (prefers-reduced-motion: reduce) { .f { animation: none; } .last { opacity: 1; } }"""


def main() -> None:
    recipe = load("digits", ["--model", "digits-conv-small", "--seed", "0"])
    data = load_data(recipe)
    network = make_network(recipe, data, torch.device("cpu"))
    optimizer = torch.optim.SGD(network.model.parameters(), lr=0.3, momentum=0.9, weight_decay=0.01)
    updates = sp.Cubic(to=0.9, begin=0, end=200, every=20)
    pruner = sp.Pruner(network.model, sp.Criticality(regrow=0.2), updates)
    pruner.attach(optimizer)
    frames: list[tuple[Tensor, Tensor, float]] = []
    network.model.train()
    epochs = (batches(data, "train", 64, shuffle=True, epoch=epoch) for epoch in range(12))
    for step, (x, y) in enumerate(itertools.islice(itertools.chain.from_iterable(epochs), 240), 1):
        loss = F.cross_entropy(network(x).mean(0), y)
        optimizer.zero_grad()
        loss.backward()
        before = pruner.masks[LAYER]
        optimizer.step()
        mask = pruner.masks[LAYER]
        if step == 1 or not torch.equal(mask, before):
            frames.append((mask.flatten(1), (mask & ~before).flatten(1), pruner.sparsity))
    PLACE.write_text(picture(frames), encoding="utf-8")
    print(PLACE, f"{PLACE.stat().st_size / 1000:.0f} kB, {len(frames)} frames")


def picture(frames: list[tuple[Tensor, Tensor, float]]) -> str:
    """The frames as one SVG file that moves by itself, without scripts."""
    rows, columns = frames[0][0].shape
    width, height = columns * CELL, rows * CELL
    style = STYLE % {"seconds": SECONDS, "share": 100 / len(frames)}
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height + 24}" role="img" '
        f'aria-label="The mask of a convolution through {len(frames) - 1} mask updates"><style>{style}</style>',
        f'<path class="dead" d="M0 0h{width}v{height}h-{width}z"/>',
    ]
    for number, (mask, back, sparsity) in enumerate(frames):
        kind = "f last" if number == len(frames) - 1 else "f"
        said = "dense" if number == 0 else f"mask update {number}: {sparsity:.0%} of the network cut"
        parts.append(
            f'<g class="{kind}" style="animation-delay:{number * SECONDS / len(frames):.2f}s">'
            f'<path class="alive" d="{squares(mask & ~back)}"/><path class="back" d="{squares(back)}"/>'
            f'<text x="2" y="{height + 17}">{said}</text></g>'
        )
    return "\n".join([*parts, "</svg>", ""])


def squares(mask: Tensor) -> str:
    """Runs of True in each row as rectangles."""
    found: list[str] = []
    for y, row in enumerate(mask.tolist()):
        x = 0
        while x < len(row):
            start = x
            while x < len(row) and row[x]:
                x += 1
            if x > start:
                found.append(f"M{start * CELL} {y * CELL}h{(x - start) * CELL}v{CELL - 1}h-{(x - start) * CELL}z")
            x += 1
    return "".join(found)


if __name__ == "__main__":
    main()
