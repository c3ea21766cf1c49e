"""Meta-learning: one inner loop, one file for each outer rule, and the engine that runs them."""
