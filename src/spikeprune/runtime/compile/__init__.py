"""Sparse inference: `compile` turns a pruned model into a `CompiledSNN`, `load` reads one that was saved."""

from spikeprune.runtime.compile.compiled import CompiledSNN, EnginePlan, PlanRow, compile, load

__all__ = ["CompiledSNN", "EnginePlan", "PlanRow", "compile", "load"]
