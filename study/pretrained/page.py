"""Prints docs/pretrained.md from the cards in the weight files: python study/pretrained/page.py > docs/pretrained.md"""

import hashlib

from spikeprune.zoo.pretrained import Card, card, file_of, names

HEAD = """\
# Networks that come trained

`sp.pretrained(name)` gives a small trained network in eval mode. The weights are files of the package, so neither data
nor a network connection is needed. `spikeprune list pretrained` lists the names.

```python
import spikeprune as sp
from spikeprune.data import batches
from spikeprune.lab.train.pretrained import data_of

model = sp.pretrained("digits")
images = batches(data_of("digits"), "train", 100)  # normalised as the network wants them
```

`spikeprune eval NAME --data.root DIR` measures the accuracy below once more. The networks are ordinary SpikingJelly
models that `sp.model` builds; a BatchNorm stands before all LIF neurons. Images are repeated over T steps.

"""

TAIL = """
**How they were trained.** The recipes stand in `study/pretrained/recipes.py`, and the command in each card trains the
network anew. Weights are equal bit for bit on one kind of processor with one thread and the same PyTorch. Elsewhere
sums are rounded otherwise, and the result is another network of about the same accuracy. The trainings ran on a machine
of two cores that other work used as well, so the learning rate of some followed the clock: the schedule ended when the
time was over. It stands in `study/pretrained/NAME.progress.json` or in the recipe, and the command repeats it.

**What they are for.** They are there to be pruned, squeezed, compiled and measured. They are not the best that their
architecture reaches: the trainings are short. `cifar10-vgg` had about 50 minutes
of processor time, `cifar10-resnet` about 40.

**Images.** The accuracy is that of the whole test split, which was scored once. The validation images were held out of
the training images with seed 0. Draw images for calibration from the training split, as above.

**Licence.** The weights are under the licence of this project (Apache-2.0). The sources of the data are named above.
"""

COLUMNS = ("name", "network", "images", "T", "weights", "test accuracy", "validation", "epochs", "CPU hours", "kB")


def main() -> None:
    print(HEAD + _row(COLUMNS) + "\n" + _row(["---"] * len(COLUMNS)))
    for name in names():
        print(_row(_cells(card(name))))
    print("\n## Cards\n")
    for name in names():
        print(_section(card(name)))
    print(TAIL, end="")


def _cells(found: Card) -> list[str]:
    path = file_of(found.name)
    held = found.validation_accuracy
    return [
        f"`{found.name}`",
        f"`{found.model}`",
        f"{found.data}, {found.size}x{found.size}",
        str(found.T),
        f"{_weights(found):,}",
        f"{found.accuracy:.2%} of {found.counts['test']:,}",
        "-" if held is None else f"{held:.1%} of {found.counts['validation']:,}",
        str(found.epochs),
        f"{found.cpu_hours:.2f}",
        f"{path.stat().st_size / 1000:,.0f}",
    ]


def _section(found: Card) -> str:
    lines = [
        f"**{found.name}**: seed {found.seed}; trained on {found.counts['train']:,} images.",
        f"Preprocessing: (pixels / {found.scale:g} - mean) / std,"
        f" mean {_numbers(found.mean)}, std {_numbers(found.std)}.",
        *(f"Note: {note}." for note in found.notes),
        f"Licence: {found.licence}.",
        f"Trained by `{found.recipe}`.",
        f"SHA-256 `{hashlib.sha256(file_of(found.name).read_bytes()).hexdigest()}`.",
    ]
    return "\n".join(lines) + "\n"


def _weights(found: Card) -> int:
    from spikeprune.zoo.pretrained import pretrained

    return sum(p.numel() for p in pretrained(found.name).parameters() if p.dim() > 1)


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.4f}" for value in values)


def _row(cells: "list[str] | tuple[str, ...]") -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
