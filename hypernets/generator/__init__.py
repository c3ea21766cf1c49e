"""Generated starts: a diffusion model over the weights of fits that began from one prior."""
