"""The ordinary starts that a learned one is judged against, on the same network; a registry by name."""
