"""Data: `load` reads, checks and splits a dataset into memory; `batches` serves it, normalised and augmented.

One file of this folder is one dataset (see `registry`); what files of a format share is in `formats`.
"""

from spikeprune.data.batches import batches, steps_per_epoch
from spikeprune.data.dataset import Dataset, Source, Split, sizes
from spikeprune.data.load import load
from spikeprune.data.registry import Facts, Request, facts_of, known_dataset, names, register, told_apart_by_root

__all__ = ["Dataset", "Facts", "Request", "Source", "Split", "batches", "facts_of", "known_dataset", "load", "names"]
__all__ += ["register", "sizes", "steps_per_epoch", "told_apart_by_root"]
