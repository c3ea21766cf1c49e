"""The family of predicted starts: a graph hypernetwork, trained on random architectures."""
