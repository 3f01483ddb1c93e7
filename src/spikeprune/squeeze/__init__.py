"""A trained network made small without labels and without training: cut in rounds, re-solved, measured again."""

from spikeprune.host.callable import answer_calls

answer_calls(__name__, "spikeprune.squeeze.squeeze:squeeze")
