"""Data: `load` reads, checks and splits a dataset into memory; `batches` serves it, normalised and augmented."""

from spikeprune.data.batches import batches, steps_per_epoch
from spikeprune.data.dataset import Dataset, Split, sizes
from spikeprune.data.facts import FACTS, Facts
from spikeprune.data.load import load, names

__all__ = ["FACTS", "Dataset", "Facts", "Split", "batches", "load", "names", "sizes", "steps_per_epoch"]
