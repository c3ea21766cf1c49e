"""Graph hypernetworks: a network's graph goes in, weights for all of its parameters come out."""
