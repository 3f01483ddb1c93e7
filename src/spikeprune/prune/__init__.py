"""The Pruner: from scores to exact masks, during the user's own training or in one shot."""

from spikeprune.host.callable import answer_calls

answer_calls(__name__, "spikeprune.prune.once:prune")
