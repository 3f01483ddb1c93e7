"""Sparse inference: `compile` turns a pruned model into a `CompiledSNN`."""
