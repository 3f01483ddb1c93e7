"""`digits`: 1,797 handwritten digits of 8x8 pixels that come with scikit-learn, so no file and no network is needed."""

import string
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from spikeprune.core.errors import MissingDependency
from spikeprune.data.dataset import Source, Split
from spikeprune.data.registry import Facts, Request, register


@register(
    "digits",
    facts=Facts((1, 8, 8), 10, train=1442, test=355, names=tuple(string.digits)),
    cite="Alpaydin and Kaynak 1998, Optical Recognition of Handwritten Digits, UCI",
    license="CC BY 4.0",
    home="https://scikit-learn.org",
    needs_files=False,
)
def read(request: Request) -> Source:
    """Values 0..16 at scale 16. The set has no split of its own: every fifth image of each class is test.

    Raises: MissingDependency without scikit-learn.
    """
    flat, target = _from_scikit_learn()
    images = torch.from_numpy(flat.astype(np.uint8)).view(-1, 1, 8, 8)
    labels = torch.from_numpy(target.astype(np.int64))
    rank = torch.zeros_like(labels)  # index of an image among those of its class
    for label in range(10):
        members = labels == label
        rank[members] = torch.arange(int(members.sum()))
    test = rank % 5 == 4
    return Source(
        train=Split(images[~test], labels[~test]),
        test=Split(images[test], labels[test]),
        classes=request.facts.names,
        scale=16.0,
    )


def _from_scikit_learn() -> tuple[np.ndarray, np.ndarray]:
    """Pixels [1797, 64] and labels [1797] of scikit-learn's file, without the second or two that its import takes."""
    found = find_spec("sklearn")
    for folder in (found.submodule_search_locations or []) if found is not None else []:
        file = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if file.is_file():
            table = np.loadtxt(file, delimiter=",")
            return table[:, :-1], table[:, -1]
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingDependency(
            "the digits data comes with scikit-learn, which is not installed: pip install 'spikeprune[demo]'"
        ) from error
    flat, target = load_digits(return_X_y=True)
    return np.asarray(flat), np.asarray(target)
