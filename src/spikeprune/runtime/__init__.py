"""Compiled sparse inference and fused training kernels."""
