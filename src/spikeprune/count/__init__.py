"""Honest counts: parameters, multiplies, synaptic operations and energy, with credit for pruned weights."""

from spikeprune.host.callable import answer_calls

answer_calls(__name__, "spikeprune.count.counts:count")
