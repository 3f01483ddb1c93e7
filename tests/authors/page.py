"""docs/authors.md, each method beside its authors' code, from the committed numbers: `python tests/authors/page.py`."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from authors.exact import NUMBERS
from spikeprune.methods import names
from spikeprune.methods.registry import method_class, source_of

PAGE = Path(__file__).parents[2] / "docs" / "authors.md"
HEAD = """# Methods beside their authors' code

For every row "equal" the authors' code ran beside this library in float64, from the same weights and the same batches;
the numbers that came out are committed in [tests/authors/numbers](../tests/authors/numbers), with seed, shapes and
commit, and a test compares with them. No code of theirs is part of this repository. Make a row anew with
`python tests/authors/NAME.py CHECKOUT --write`, and this page with `python tests/authors/page.py`. Differences that
stay are told in the method's docstring, so in [docs/methods.md](methods.md).

"""
# Method -> the comparison that it takes part in, and what was compared.
COMPARED = {
    "admm": ("admm", "updates of Z and U, and the final cut"),
    "ch3-l3": ("ch3_l3", "the score of missing links, node form"),
    "criticality": ("criticality", 'rule "authors", a plain network'),
    "dpap": ("dpap", "the masks of 25 mask updates, at their counts"),
    "early-bird": ("early_bird", "the mask at every look, and the look that ends the search"),
    "eb-et": ("early_time", "the number of time steps of the search"),
    "gradient": ("granet", "growth, as in GraNet"),
    "granet": ("granet", "every mask update but their last, at their counts"),
    "grasp": ("grasp", "the mask at three sparsities, with tanh and with LIF neurons, at their counts"),
    "grad-r": ("grad_r", "which connections exist, with Adam and beta_1 = 0"),
    "imp": ("imp", "four rounds of cut and rewind, at their counts"),
    "imp-et": ("early_time", "the number of time steps of the search"),
    "magnitude": ("granet", "the global cut, as in GraNet, at their counts"),
    "deep-r": ("deep_r", "which connections exist, gradient, walk and pull of alive ones, at six looks"),
    "rigl": ("rigl", "six mask updates of RigL and six of its authors' SET, after the optimizer's update"),
    "sd-snn": ("sd_snn", "the masks of 25 mask updates of a convolution and of a matrix each, at their counts"),
    "set": ("rigl", "six mask updates of RigL and six of its authors' SET, one ranking by |w|, the same draws"),
    "snip": ("snip", "the mask at three sparsities; a published port, theirs is TensorFlow 1"),
    "synflow": ("synflow", "the mask at three sparsities in up to 30 cuts, with ReLU and with neurons"),
    "upf": ("upf", "which gates of weights are open as they sharpen"),
    "stds": ("stds", "which weights are 0 as the threshold grows, weight decay included"),
}
# Method -> what stands in place of a comparison. `DIFFERS`: public code was read, and the docstring tells differences.
DIFFERS = "public code, not run beside; documented"
NONE = "no public code found"
NOT_RUN = "public code for ordinary networks, not run beside; follows the paper's formula"
OWN = "a control or a score of this library"
OTHERS = {
    "anti-criticality": OWN,
    "bn-scale": NOT_RUN,
    "bn-scale-rate": NONE,
    "critical-energy": OWN,
    "dense": OWN,
    "esl-snn": NONE,
    "firing-rate": OWN,
    "last-magnitude": OWN,
    "membrane": OWN,
    "ndsnn": NONE,
    "pca": NONE,
    "random": OWN,
    "random-prune": OWN,
    "rcmo": DIFFERS,
    "snfs": DIFFERS,
    "taylor": NOT_RUN,
    "weight-norm": NOT_RUN,
}


# Methods that equal their authors' code but for what their docstrings tell.
_TOLD = (
    "admm",
    "ch3-l3",
    "deep-r",
    "dpap",
    "early-bird",
    "eb-et",
    "grad-r",
    "granet",
    "grasp",
    "imp",
    "imp-et",
    "rigl",
    "sd-snn",
    "set",
    "synflow",
    "upf",
)


@dataclass(frozen=True)
class Kept:
    """The committed numbers of one comparison."""

    repository: str
    commit: str
    equal: list[bool]

    @classmethod
    def of(cls, name: str) -> "Kept":
        found: dict[str, Any] = json.loads((NUMBERS / f"{name}.json").read_text())
        setting = found["setting"]
        return cls(setting["repository"], setting["commit"], found["equal"])


def text() -> str:
    """The page. Raises: KeyError for a method that neither list has."""
    lines = ["| method | source | authors' code | result |", "|---|---|---|---|"]
    for name in names():
        if name in COMPARED:
            file, what = COMPARED[name]
            kept = Kept.of(file)
            code = f"[{kept.repository.rpartition('/')[2]}](https://{kept.repository}) at {kept.commit}"
            things = "choices" if file == "early_time" else "masks"
            result = f"equal: {sum(kept.equal)} of {len(kept.equal)} {things} ({what})"
            if not all(kept.equal):
                result = f"DIFFERENT in {kept.equal.count(False)} of {len(kept.equal)} {things} ({what})"
        else:
            code, result = "", OTHERS[name]
        lines.append(f"| {name} | {source_of(name)} | {code} | {result} |")
    net = Kept.of("resnet19")
    lines += [
        "",
        f"The network `resnet19-weights-authors` equals the class of {net.repository} at {net.commit}: the same "
        f"outputs on copied weights, and {sum(net.equal)} of {len(net.equal)} masks of criticality with their rule.",
        "",
        "## Differences, method by method",
        "",
    ]
    for name in names():
        if OTHERS.get(name) == DIFFERS or name in _TOLD:
            lines += [f"**{name}.** {_source(name)}", ""]
    return HEAD + "\n".join(lines).rstrip() + "\n"


def _source(name: str) -> str:
    """From the docstring: the paragraphs that tell where the method differs, and its source."""
    doc = (method_class(name).__doc__ or "").splitlines()
    found: list[str] = []
    taking = False
    for line in doc:
        start = line.strip()
        if start.startswith(("Where it differs", "Source:")):
            taking = True
        elif not start or (start.endswith(":") and line.startswith("    ") and not line.startswith("     ")):
            taking = False
        if taking:
            found.append(start)
    return " ".join(found)


if __name__ == "__main__":
    PAGE.write_text(text(), encoding="utf-8")
    print(PAGE.name)
