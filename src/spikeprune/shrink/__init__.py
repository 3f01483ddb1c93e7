"""Physically smaller networks: which channels are dead, the plan of what is cut, and the cut itself."""

from spikeprune.host.callable import answer_calls

answer_calls(__name__, "spikeprune.shrink.shrink:shrink")
