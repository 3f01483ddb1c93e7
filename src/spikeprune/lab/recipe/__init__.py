"""Recipes: what a run is told, and what follows from it."""
