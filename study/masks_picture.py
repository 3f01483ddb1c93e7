"""Makes docs/images/masks.svg, the moving picture of the README: `python study/masks_picture.py`.

A small network learns digits and is pruned by magnitude with regrowth by criticality. Each frame is the mask of one
convolution after a mask update: a row is an output channel, a square a weight. Green weights stayed, orange ones came
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
STYLE = """path { stroke-width: 5; stroke-dasharray: 5 1; fill: none; } .dead { stroke: #8884; }
.alive { stroke: #0b7a75; } .back { stroke: #e07b2e; } text { font: 13px system-ui, sans-serif; fill: #777; }
@media (prefers-color-scheme: dark) { .alive { stroke: #3cc4b8; } .back { stroke: #f59a57; } text { fill: #aaa; } }"""


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
    """The frames as one SVG file that moves by itself, without scripts; where nothing moves, the last one shows."""
    rows, columns = frames[0][0].shape
    width, height = columns * CELL, rows * CELL
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height + 24}" role="img" '
        f'aria-label="The mask of a convolution through {len(frames) - 1} mask updates"><style>{STYLE}</style>',
        f'<path class="dead" d="{cells(torch.ones(rows, columns, dtype=torch.bool))}"/>',
    ]
    for number, (mask, back, sparsity) in enumerate(frames):
        said = "dense" if number == 0 else f"mask update {number}: {sparsity:.0%} of the network cut"
        last = number == len(frames) - 1
        parts.append(
            f'<g visibility="{"visible" if last else "hidden"}">{moving(number, len(frames))}'
            f'<path class="alive" d="{cells(mask & ~back)}"/><path class="back" d="{cells(back)}"/>'
            f'<text x="2" y="{height + 17}">{said}</text></g>'
        )
    return "\n".join([*parts, "</svg>", ""])


def moving(number: int, count: int) -> str:
    """Shows the frame of that number in its turn; the last one stays for two turns."""
    turns = count + 1
    begin, end = number / turns, (number + 1 + (number == count - 1)) / turns
    steps = [(0.0, "hidden" if begin else "visible"), (begin, "visible"), (end, "hidden")]
    steps = [step for n, step in enumerate(steps) if step[0] < 1 and (n == 0 or step[0] > 0)]
    values, times = ";".join(value for _, value in steps), ";".join(f"{at:.4f}" for at, _ in steps)
    return (
        f'<animate attributeName="visibility" dur="{SECONDS}s" repeatCount="indefinite" calcMode="discrete" '
        f'values="{values}" keyTimes="{times}"/>'
    )


def cells(mask: Tensor) -> str:
    """Runs of True in each row as lines, which dashes cut into squares."""
    found: list[str] = []
    for y, row in enumerate(mask.tolist()):
        x = 0
        for alive, run in itertools.groupby(row):
            length = len(list(run))
            if alive:
                found.append(f"M{x * CELL} {y * CELL + CELL // 2}h{length * CELL - 1}")
            x += length
    return "".join(found)


if __name__ == "__main__":
    main()
