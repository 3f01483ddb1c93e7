"""Adapters for spiking frameworks and export. The only folder besides zoo/ that names a framework."""

from spikeprune.model.adapter import adapter_for, find_adapter, register_adapter

__all__ = ["adapter_for", "find_adapter", "register_adapter"]
