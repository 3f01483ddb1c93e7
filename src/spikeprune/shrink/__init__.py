"""Physically smaller networks: which channels are dead, the plan of what is cut, and the cut itself."""
