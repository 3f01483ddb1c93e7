"""Reads one forward as the graph of one time step; decision 22 says why and how."""
