"""The laboratory: recipes, training, sweeps, studies and pages. The library works without it."""
