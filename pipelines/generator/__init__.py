"""The family of generated starts: a diffusion model over the weights of a zoo."""
