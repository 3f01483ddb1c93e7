"""The laboratory: many runs from one file, what they say together, and why a run came out as it did."""
