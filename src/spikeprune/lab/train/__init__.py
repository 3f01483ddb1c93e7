"""Training: recipes, data, the loop, checkpoints and run folders."""
