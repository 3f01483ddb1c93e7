"""What one forward did, as the graph of one time step; decision 19 says why and how."""
