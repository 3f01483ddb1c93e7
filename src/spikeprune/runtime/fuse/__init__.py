"""BatchNorm and neuron in one kernel, for training SpikingJelly models (`fuse`, `unfuse`)."""

from spikeprune.runtime.fuse.model import Fused, fuse, fuse_report, recording_criticality, unfuse

__all__ = ["Fused", "fuse", "fuse_report", "recording_criticality", "unfuse"]
