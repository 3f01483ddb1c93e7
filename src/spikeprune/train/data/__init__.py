"""Data: `load` reads, checks and splits a dataset into memory; `batches` serves it, normalised and augmented."""

from spikeprune.train.data.batches import batches, steps_per_epoch
from spikeprune.train.data.dataset import Dataset, Split, sizes
from spikeprune.train.data.facts import FACTS, Facts
from spikeprune.train.data.load import load, names

__all__ = ["FACTS", "Dataset", "Facts", "Split", "batches", "load", "names", "sizes", "steps_per_epoch"]
