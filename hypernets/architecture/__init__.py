"""A network as a graph of operations: traced, written down, drawn, and drawn at random."""
