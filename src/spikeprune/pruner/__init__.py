"""From a user's model to masks: adapters, tracing, recording, and the one stateful object, the Pruner."""
