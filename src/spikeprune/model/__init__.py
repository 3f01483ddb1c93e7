"""Reads a user's model: its neurons, which weight feeds which neuron, and which channels belong together."""

from spikeprune.host.callable import answer_calls

answer_calls(__name__, "spikeprune.zoo:build")
