"""Predicted and generated weights: architecture graphs, graph hypernetworks, diffusion over weights."""
