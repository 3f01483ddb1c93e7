"""Pruning methods, one file each. `spikeprune.methods()` lists their names."""

from spikeprune.host.callable import answer_calls
from spikeprune.methods.registry import make_method, names, settings_of

__all__ = ["make_method", "names", "settings_of"]

answer_calls(__name__, "spikeprune.methods.registry:names")
