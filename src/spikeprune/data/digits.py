"""`digits`: 1,797 handwritten digits of 8x8 pixels that come with scikit-learn, so no file and no network is needed."""

import numpy as np
import torch

from spikeprune.core.errors import MissingDependency
from spikeprune.data.dataset import Source, Split
from spikeprune.data.facts import FACTS


def read_digits() -> Source:
    """Values 0..16 at scale 16. The set has no split of its own: every fifth image of each class is test.

    Raises: MissingDependency without scikit-learn.
    Source: Alpaydin and Kaynak 1998, Optical Recognition of Handwritten Digits, UCI.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingDependency(
            "the digits data comes with scikit-learn, which is not installed: pip install 'spikeprune[demo]'"
        ) from error
    data = load_digits()
    images = torch.from_numpy(data.images.astype(np.uint8))[:, None]
    labels = torch.from_numpy(data.target.astype(np.int64))
    rank = torch.zeros_like(labels)  # the how-manieth image of its class
    for label in range(10):
        members = labels == label
        rank[members] = torch.arange(int(members.sum()))
    test = rank % 5 == 4
    return Source(
        train=Split(images[~test], labels[~test]),
        test=Split(images[test], labels[test]),
        classes=FACTS["digits"].names,
        scale=16.0,
    )
